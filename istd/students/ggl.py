"""GGL-Net: gradient-guided learning network (Zhao et al., IEEE GRSL 2023).

The encoder of ALCL-Net with squeeze-and-excitation, which receives at every stage where the image has edges: the
gradient magnitude of the input, brought to the stage's size by maxima, is embedded and joined to its features (gradient
supplementary module). In the decoder the coarse map guides the fine one by channels and the fine one guides the coarse
one by pixels (two-way guidance fusion). Every layer is the published one (PAL, 2025), in the published order; only the
initial weights are PyTorch's own.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import ChannelAttention, SpatialAttention, SqueezeExcitation
from istd.students.base import Stage, Student
from istd.students.blocks import scaled
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.residual import PoolingBlock, ResidualBlock, conv_bn, double_conv, local_response, pixel_head

REDUCTION = 4  # of the channels in squeeze-and-excitation


def gradient_magnitude(x: Tensor) -> Tensor:
    """`sqrt(v^2 + h^2)` of every channel, `(B, c, H, W) -> (B, c, H, W)`.

    v and h are the central differences of rows and columns, half the difference of both neighbours, zero outside.
    """
    around = F.pad(x, (1, 1, 1, 1))
    v = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    h = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    return torch.hypot(v, h) / 2


class ExcitedBlock(nn.Module):
    """`relu(x + bn(conv(excite(relu(bn(conv(x)))))))`, `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn(channels, channels), nn.ReLU(inplace=True))
        self.second = conv_bn(channels, channels)
        self.excite = SqueezeExcitation(channels, REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu_(self.second(self.excite(self.first(x))) + x)


class GradientSupplement(nn.Module):
    """`relu(f + join([f, embed(g)]))`: features joined with the gradient magnitude of their size.

    `embed` and `join` are two convolutions each, with squeeze-and-excitation between them.
    """

    def __init__(self, gradient: int, channels: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.embed = nn.Sequential(*self._excited(gradient, channels), relu)
        self.join = nn.Sequential(*self._excited(2 * channels, channels))

    def _excited(self, cin: int, cout: int) -> list[nn.Module]:
        middle = [nn.ReLU(inplace=True), SqueezeExcitation(cout, REDUCTION)]
        return [*conv_bn(cin, cout), *middle, *conv_bn(cout, cout)]

    def forward(self, features: Tensor, gradient: Tensor) -> Tensor:
        """`(B, c, h, w), (B, in_channels, h, w) -> (B, c, h, w)`."""
        joined = self.join(torch.cat([features, self.embed(gradient)], dim=1))
        return torch.relu_(joined + features)


class GradientStage(nn.Module):
    """Three residual blocks and a gradient supplement: one stage of the encoder, which halves the size if `halve`."""

    def __init__(self, gradient: int, cin: int, cout: int, halve: bool) -> None:
        super().__init__()
        first: nn.Module = PoolingBlock(cin, cout) if halve else ResidualBlock(cout)
        self.blocks = nn.Sequential(first, ExcitedBlock(cout), ExcitedBlock(cout))
        self.supplement = GradientSupplement(gradient, cout)

    def forward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Apply the stage; the gradient has the size of what the blocks return."""
        out: Tensor = self.supplement(self.blocks(x), gradient)
        return out


class TwoWayGuidance(nn.Module):
    """`low * channels(h) + h * pixels(low)` with `h = relu(bn(up(conv1x1(high))))`.

    Published as the convolution of the upsampled map; the two commute (see `istd.students.alcl`).
    """

    folds = (("project", "activate.0"),)

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(high, low, 1)
        self.activate = nn.Sequential(nn.BatchNorm2d(low), nn.ReLU(inplace=True))
        self.channels = ChannelAttention(low, reduction=8)
        self.pixels = SpatialAttention(maximum_first=True, bias=True)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2), (B, low, H, W) -> (B, low, H, W)`."""
        h = self.activate(F.interpolate(self.project(high), size=low.shape[-2:], mode="bilinear", align_corners=True))
        out: Tensor = low * self.channels(h) + h * self.pixels(low)
        return out


class GGLNet(Student):
    """GGL-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.in_channels, self.stages = in_channels, tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = double_conv(in_channels, c[0])
        self.encoder = nn.ModuleList(
            GradientStage(in_channels, a, b, halve=i > 0) for i, (a, b) in enumerate(pairwise([c[0], *c]))
        )
        # Coarsest first, here and below: the published order.
        self.contrast = nn.ModuleList(local_response(n) for n in reversed(c))
        self.top_down = nn.ModuleList(TwoWayGuidance(high, low) for high, low in pairwise(reversed(c)))
        self.head = pixel_head(c[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        gradient = gradient_magnitude(x)
        features: list[Tensor] = []
        x = self.stem(x)
        for stage in self.encoder:
            if features:
                gradient = F.max_pool2d(gradient, 2)
            x = stage(x, gradient)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x, *finer = (module(f) for module, f in zip(self.contrast, reversed(features), strict=True))
        for module, low in zip(self.top_down, finer, strict=True):
            x = module(x, low)
        out: Tensor = self.head(x)
        return out


STUDENTS.register(
    "ggl", StudentInfo(GGLNet, "GGL-Net (Zhao et al., 2023)", published_parameters=8_988_093, gflops=19.18)
)
