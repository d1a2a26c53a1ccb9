"""MSDA-Net: multi-scale direction-aware network (Zhao et al., IEEE TGRS 2025).

Five levels of two blocks each, a block being four branches of growing reach, attention to the directions of Haar
wavelets, and channel attention. The image's own high-frequency bands join the second level, and all levels feed the
deepest. The decoder mixes levels by convolutions over both.

At width 1 all layers are the published ones (the authors' release; PAL's is the same network). Left out are the
`conv_res` of the five lateral blocks, which the release constructs and never calls, and its fixed Haar filters, which
are sums and differences here. Equal to the release but cheaper: one multiplication by the sum of four gates, the mean
over channels taken before its filter, one pooling for several. The release filters in float32 and casts the filters to
half precision in the backward pass, which changes nothing, for they are +-1/2; here they have the map's own dtype.

One output; trained in the release with one loss on it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import SqueezeExcitation
from istd.students.base import Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.wavelets import haar, haar_bands

WIDTHS = (16, 32, 64, 64, 64)
SIDE = 16  # channels that every level sends to the deepest


def _conv_bn(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    """The published form: the convolution has a bias, though normalisation follows."""
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout))


class DirectionalAttention(nn.Module):
    """`relu(x + bn(conv3x3(x sum_b g_b)))`, g_b a gate per pixel from Haar band b, `(B, c, H, W) -> (B, c, H, W)`.

    `g_b = sigmoid(conv7x7([maximum over channels of the band, mean over channels of the band]))`.

    Source: Zhao et al. (2025), high-frequency direction injection and direction-aware attention.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3) for _ in range(4))  # for HH, LH, HL, LL
        self.post = _conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention."""
        ll, lh, hl, hh = (
            torch.cat([band.amax(1, keepdim=True), mean], dim=1)
            for band, mean in zip(haar_bands(x), haar_bands(x.mean(1, keepdim=True)), strict=True)
        )
        gate = sum(conv(band).sigmoid() for conv, band in zip(self.gates, (hh, lh, hl, ll), strict=True))
        return torch.relu(x + self.post(x * gate))


class MultiScaleBlock(nn.Module):
    """Branches of growing reach, joined by a 3x3 convolution, `(B, c, H, W) -> (B, c, H, W)`.

    A 1x1 branch; with `near`, one of 1x1 and 3x3; and two of 3x3 and 5x5, each before a 3x3 that is dilated by 3 and 5.

    Source: Zhao et al. (2025); the branches are those of the receptive field block (Liu et al., ECCV 2018).
    """

    def __init__(self, channels: int, near: bool) -> None:
        super().__init__()
        c = channels
        branches = [conv_bn_relu(c, c, 1)]
        if near:
            branches.append(nn.Sequential(conv_bn_relu(c, c, 1), conv_bn_relu(c, c)))
        for kernel in (3, 5):
            branches.append(nn.Sequential(conv_bn_relu(c, c, kernel), conv_bn_relu(c, c, dilation=kernel)))
        self.branches = nn.ModuleList(branches)
        self.join = conv_bn_relu(len(branches) * c, c)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return out


class DirectionAwareBlock(nn.Module):
    """`relu(x + conv3x3(channels(directions(branches(x)))))`, `(B, c, H, W) -> (B, c, H, W)`.

    Source: Zhao et al. (2025), multi-scale direction-aware module.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = MultiScaleBlock(channels, near=True)
        self.post = conv_bn_relu(channels, channels)
        self.directions, self.channels = DirectionalAttention(channels), SqueezeExcitation(channels, reduction=4)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu(x + self.post(self.channels(self.directions(self.branches(x)))))


class First(nn.Module):
    """Two convolutions and a residual block at full resolution, `(B, cin, H, W) -> (B, c, H, W)`."""

    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(*_conv_bn(cin, c), relu, *_conv_bn(c, c), relu)
        self.residual = nn.Sequential(*_conv_bn(c, c), relu, *_conv_bn(c, c))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        x = self.stem(x)
        return torch.relu(x + self.residual(x))


class Down(nn.Module):
    """Residual block with a strided 3x3 convolution as shortcut, `(B, cin, H, W) -> (B, c, H/2, W/2)`."""

    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(*_conv_bn(cin, c), relu, nn.MaxPool2d(2), *_conv_bn(c, c))
        self.shortcut = nn.Sequential(*_conv_bn(cin, c, stride=2), relu)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Up(nn.Module):
    """`low + conv1x1(h + conv3x3(conv1x1([h, low])))`, h the coarse map upsampled; normalised after every convolution.

    Source: the release (`Sbam`).
    """

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.project = nn.Sequential(nn.Conv2d(high, low, 1), nn.BatchNorm2d(low), relu)
        self.mix = nn.Sequential(
            nn.Conv2d(high + low, high, 1), nn.BatchNorm2d(high), relu, *_conv_bn(high, high), relu
        )

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2)` and `(B, low, H, W)` -> `(B, low, H, W)`."""
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=True)
        out: Tensor = low + self.project(high + self.mix(torch.cat([high, low], dim=1)))
        return out


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
            enter = First(in_channels, n) if i == 0 else Down(c[i - 1], made[i])
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
    "msda", StudentInfo(MSDANet, "MSDA-Net (Zhao et al., 2025)", published_parameters=4_805_089, left_out=LEFT_OUT)
)
