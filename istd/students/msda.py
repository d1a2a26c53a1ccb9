"""MSDA-Net: multi-scale direction-aware network (Zhao et al., IEEE TGRS 2025).

Five levels of two blocks each, a block being four branches of growing reach, attention to the directions of Haar
wavelets, and channel attention. The image's own high-frequency bands join the second level, and all levels feed the
deepest. The decoder mixes levels by convolutions over both.

At width 1 all layers are the published ones (the authors' release; PAL's is the same network). Left out are the
`conv_res` of the five lateral blocks, which the release constructs and never calls, and its fixed Haar filters, which
are sums and differences here (`istd.students.direction_aware` says where they are cheaper). The release filters in
float32 and casts the filters to half precision in the backward pass, which changes nothing, for they are +-1/2; here
they have the map's own dtype.

One output; trained in the release with one loss on it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import logit_layer, scaled
from istd.students.direction_aware import DirectionAwareBlock, MultiScaleBlock
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.residual import PoolingBlock, ResidualBlock, conv_bn, double_conv
from istd.students.wavelets import haar

WIDTHS = (16, 32, 64, 64, 64)
SIDE = 16  # channels that every level sends to the deepest


class Up(nn.Module):
    """`low + conv1x1(h + conv3x3(conv1x1([h, low])))`, h the coarse map upsampled; normalised after every convolution.

    Source: the release (`Sbam`).
    """

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.project = nn.Sequential(nn.Conv2d(high, low, 1), nn.BatchNorm2d(low), relu)
        self.mix = nn.Sequential(nn.Conv2d(high + low, high, 1), nn.BatchNorm2d(high), relu, *conv_bn(high, high), relu)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2)` and `(B, low, H, W)` -> `(B, low, H, W)`."""
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=True)
        out: Tensor = low + self.project(high + self.mix(torch.cat([high, low], dim=1)))
        return out


def _first(cin: int, c: int) -> nn.Sequential:
    """Two convolutions and a residual block at full resolution, `(B, cin, H, W) -> (B, c, H, W)`."""
    return nn.Sequential(double_conv(cin, c), ResidualBlock(c))


def _side(stride: int, c: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(stride), nn.Conv2d(c, side, 1), nn.ReLU(inplace=True))


def _union(joined: int, c: int) -> nn.Sequential:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(joined, joined, 1), relu, nn.Conv2d(joined, c, 1), relu)


class Level(nn.Module):
    """A first layer, two direction-aware blocks, and a tail: the path to the deepest level, or there the union."""

    def __init__(self, enter: nn.Module, channels: int, tail: nn.Module) -> None:
        super().__init__()
        self.enter = enter
        self.blocks = nn.Sequential(DirectionAwareBlock(channels), DirectionAwareBlock(channels))
        self.tail = tail


class MSDANet(Student):
    """MSDA-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        c, side = [scaled(n, width) for n in WIDTHS], scaled(SIDE, width)
        bands = 3 * in_channels  # of the image, beside what the second level makes itself
        c[1] = max(c[1], bands + 4)
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        made = [c[0], c[1] - bands, *c[2:]]
        levels = []
        for i, n in enumerate(c):
            enter = _first(in_channels, n) if i == 0 else PoolingBlock(c[i - 1], made[i])
            tail = _side(2 ** (4 - i), n, side) if i < 4 else _union(n + 4 * side, n)
            levels.append(Level(enter, n, tail))
        self.encoder = nn.ModuleList(levels)
        self.lateral = nn.ModuleList(MultiScaleBlock(n, near=False) for n in reversed(c))
        self.up = nn.ModuleList(Up(c[i + 1], c[i]) for i in reversed(range(4)))
        self.head = nn.Sequential(nn.Conv2d(c[0], c[0], 1), nn.ReLU(inplace=True), logit_layer(c[0]))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), (B, 32 w, H/2, W/2), ..., (B, 64 w, H/16, W/16)]`."""
        features: list[Tensor] = []
        sides: list[Tensor] = []
        image = x
        level: Any
        for i, level in enumerate(self.encoder):
            x = level.enter(x)
            if i == 1:
                x = torch.cat([*haar(image)[1:], x], dim=1)
            x = level.blocks(x)
            if i < 4:
                sides.append(level.tail(x))
            else:
                x = level.tail(torch.cat([x, *reversed(sides)], dim=1))
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        coarse, *fine = (block(f) for block, f in zip(self.lateral, reversed(features), strict=True))
        for up, low in zip(self.up, fine, strict=True):
            coarse = up(coarse, low)
        out: Tensor = self.head(coarse)
        return out


_FILTERS = tuple(
    f"stage.resnet{i}_{j}.FrequencyAttention.{band}_DWT_2D_attation"
    for i in range(1, 6)
    for j in (2, 3)
    for band in ("LH", "HL", "HH", "LL")
)
LEFT_OUT = (*(f"mlcl{i}.conv_res" for i in range(1, 6)), *_FILTERS, "stage.hfrequency")
STUDENTS.register(
    "msda",
    StudentInfo(
        MSDANet, "MSDA-Net (Zhao et al., 2025)", published_parameters=4_805_089, gflops=41.83, left_out=LEFT_OUT
    ),
)
