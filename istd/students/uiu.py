"""UIU-Net: U-Net in U-Net (Wu et al., IEEE TIP 2023).

A U-Net whose every stage is itself a residual U-Net (the RSU block of U2-Net, Qin et al., 2020), so that a stage sees
far while its output keeps its resolution. On the way up, maps of two resolutions meet in interactive-cross attention
(`CrossAttention`), except at the finest level, which joins them plainly. Every level predicts a map, and the map used
at test is a learned mixture of the six. Every layer is the published one: `uiu` normalises inside the attention over
all channels of an image, as PAL's release does (Yu et al., 2025), `uiu-bn` over the batch, as the authors' own does.

All seven maps are supervised with weight 1, as in both releases (their loss is the plain sum).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import channel_maximum
from istd.students.base import Output, Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, mean_layer, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo

Norm = Callable[[int], nn.Module]
LEVELS = 6


def image_norm(channels: int) -> nn.Module:
    """Normalisation over all channels and pixels of an image."""
    return nn.GroupNorm(1, channels)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ResidualU(nn.Module):
    """RSU block: `h + U(h)`, h = conv(x), U a small U-Net of `depth` levels; `(B, cin, H, W) -> (B, cout, H, W)`.

    Each level halves the size (or, `dilated`, doubles the dilation instead, where nothing is left to halve); the
    lowest dilates.

    Source: Qin et al. (U2-Net, Pattern Recognition 2020), section 3.1.
    """

    def __init__(self, cin: int, hidden: int, cout: int, depth: int, dilated: bool = False) -> None:
        super().__init__()
        self.dilated = dilated
        rates = [2**i if dilated else 1 for i in range(depth - 1)]
        self.entry = conv_bn_relu(cin, cout, bias=True)
        self.down = nn.ModuleList(
            conv_bn_relu(hidden if i else cout, hidden, dilation=rate, bias=True) for i, rate in enumerate(rates)
        )
        self.bottom = conv_bn_relu(hidden, hidden, dilation=2 * rates[-1], bias=True)
        self.up = nn.ModuleList(
            conv_bn_relu(2 * hidden, hidden if i else cout, dilation=rate, bias=True)
            for i, rate in reversed(list(enumerate(rates)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        entry: Tensor = self.entry(x)
        features, x = [], entry
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2, ceil_mode=True) if i and not self.dilated else x)
            features.append(x)
        x = self.bottom(x)
        for level, low in zip(self.up, reversed(features), strict=True):
            x = level(torch.cat([_resized(x, low), low], dim=1))
        return entry + x


class CrossAttention(nn.Module):
    """Interactive-cross attention: a coarse map h and a fine map l gate each other, joined along channels.

    `[post(2 l g), post(2 h' s)]`, where with n the normalisation h' = relu(n(conv1x1(up(h)))); the gate of a channel is
    g = sigmoid(n(conv1x1(relu(n(conv1x1(mean h')))))); that of a pixel is s = sigmoid(conv3x3([mean z, max z])) over
    the c/4 channels of z = relu(n(conv1x1(l g))); and post(x) = relu(n(conv3x3(x))) has one set of weights.

    Source: Wu et al. (2023), section III.C.
    """

    folds = (("project", "project_norm"),)

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        hidden = channels // 4
        self.project, self.project_norm = nn.Conv2d(channels, channels, 1), norm(channels)
        self.topdown = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            norm(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            norm(channels),
            nn.Sigmoid(),
        )
        self.bottomup = nn.Sequential(nn.Conv2d(channels, hidden, 1), norm(hidden), nn.ReLU(inplace=True))
        self.pixels = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.post = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU(inplace=True))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Coarse `(B, c, h, w)` and fine `(B, c, H, W)` -> `(B, 2 c, H, W)`."""
        # Interpolation has weights of sum one, so it commutes with a convolution of one pixel, which is cheaper before.
        high = torch.relu_(self.project_norm(_resized(self.project(high), low)))
        low = low * self.topdown(high)
        z = self.bottomup(low)
        gate = self.pixels(torch.cat([z.mean(1, keepdim=True), channel_maximum(z)], dim=1)).sigmoid()
        # Two passes, since batch normalisation sees the two maps one after the other.
        return torch.cat([self.post(2 * low), self.post(high * (2 * gate))], dim=1)


class UIUNet(Student):
    """UIU-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        norm: channels -> normalisation inside the cross attention.
    """

    contiguous_training = True
    outputs = (Output("fused"), *(Output(f"level {i + 1}") for i in range(LEVELS)))

    def __init__(self, width: float = 1.0, in_channels: int = 3, norm: Norm = image_norm) -> None:
        super().__init__()
        self.in_channels = in_channels
        c = [scaled(n, width) for n in (64, 128, 256, 512, 512, 512)]
        hidden = [scaled(n, width) for n in (32, 32, 64, 128, 256, 256)]
        depths = (7, 6, 5, 4, 4, 4)
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.encoder = nn.ModuleList(
            ResidualU(in_channels if i == 0 else c[i - 1], hidden[i], c[i], depths[i], dilated=i > 3) for i in range(6)
        )
        out = [scaled(n, width) for n in (64, 64, 128, 256, 512)]
        inner = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.decoder = nn.ModuleList(
            ResidualU(2 * c[i], inner[i], out[i], depths[i], dilated=i > 3) for i in reversed(range(5))
        )
        self.heads = nn.ModuleList(logit_layer(n, kernel=3) for n in (*out, c[5]))
        self.mix = mean_layer(LEVELS)
        self.fuse = nn.ModuleList(CrossAttention(n, norm) for n in reversed(c[1:5]))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 64 w, H, W), (B, 128 w, H/2, W/2), ..., (B, 512 w, H/32, W/32)]`."""
        return run_stages(self.encoder, x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the mixture."""
        return self.decode_all(features)[0]

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits of the mixture and of the six levels, finest first, each `(B, 1, H, W)`."""
        finest, *fine, x = features
        maps = [x]
        for stage, fuse, low in zip(self.decoder, self.fuse, reversed(fine), strict=False):
            maps.append(stage(fuse(maps[-1], low)))
        maps.append(self.decoder[-1](torch.cat([_resized(maps[-1], finest), finest], dim=1)))
        levels = [_resized(head(m), finest) for head, m in zip(self.heads, reversed(maps), strict=True)]
        return self.mix(torch.cat(levels, dim=1)), *levels


_TITLE, _SIZE = "UIU-Net (Wu et al., 2023)", 50_541_461
STUDENTS.register("uiu", StudentInfo(UIUNet, f"{_TITLE}, PAL's form", published_parameters=_SIZE, gflops=107.29))
STUDENTS.register(
    "uiu-bn",
    StudentInfo(
        partial(UIUNet, norm=nn.BatchNorm2d), f"{_TITLE}, authors' form", published_parameters=_SIZE, gflops=107.29
    ),
)
