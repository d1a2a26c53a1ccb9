"""GGL-Net: gradient-guided learning network (Zhao et al., IEEE GRSL 2023).

A residual encoder-decoder whose encoder is told, at every stage, where the image has edges: the gradient magnitude of
the input, brought to the stage's size, is embedded and joined to its features (gradient supplementary module). In the
decoder the coarse map guides the fine one by channels and the fine one guides the coarse one by pixels (two-way
guidance fusion). The authors' code was not copied; where the paper leaves a layer open the choice is ours, so counts
agree only approximately.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import ChannelAttention, SpatialAttention
from istd.students.base import Stage, Student
from istd.students.blocks import BasicBlock, conv_bn_relu, logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo

BLOCKS = (4, 4, 4, 4, 5)


def gradient_magnitude(x: Tensor) -> Tensor:
    """Sobel gradient magnitude of the channel mean, `(B, c, H, W) -> (B, 1, H, W)`; borders are mirrored."""
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=x.dtype, device=x.device) / 8
    slopes = F.conv2d(grey, torch.stack([kernel, kernel.T])[:, None])
    return (slopes.square().sum(1, keepdim=True) + 1e-12).sqrt()


class GradientSupplement(nn.Module):
    """`f + conv3x3([f, embed(g)])`: features joined with the embedded gradient magnitude of their size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 4)
        self.embed = conv_bn_relu(1, hidden)
        self.join = conv_bn_relu(channels + hidden, channels)

    def forward(self, features: Tensor, gradient: Tensor) -> Tensor:
        """`(B, c, h, w), (B, 1, h, w) -> (B, c, h, w)`."""
        out: Tensor = features + self.join(torch.cat([features, self.embed(gradient)], dim=1))
        return out


class TwoWayGuidance(nn.Module):
    """`conv3x3(low * channels(high) + high * pixels(low))`, high projected and upsampled to low's shape."""

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.project = conv_bn_relu(high, low, 1)
        self.channels, self.pixels = ChannelAttention(low, 4), SpatialAttention()
        self.fuse = nn.Sequential(conv_bn_relu(low, low), conv_bn_relu(low, low))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, h, w), (B, low, H, W) -> (B, low, H, W)`."""
        up = F.interpolate(self.project(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.fuse(low * self.channels(up) + up * self.pixels(low))
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
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = conv_bn_relu(in_channels, c[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(
                BasicBlock(c[max(i - 1, 0)], n, 1 if i == 0 else 2), *(BasicBlock(n, n) for _ in range(BLOCKS[i] - 1))
            )
            for i, n in enumerate(c)
        )
        self.supplement = nn.ModuleList(GradientSupplement(n) for n in c)
        self.decoder = nn.ModuleList(TwoWayGuidance(high, low) for low, high in pairwise(c))
        self.head = nn.Sequential(conv_bn_relu(c[0], c[0]), logit_layer(c[0]))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        gradient, features = gradient_magnitude(x), []
        x = self.stem(x)
        for stage, supplement in zip(self.encoder, self.supplement, strict=True):
            x = stage(x)
            x = supplement(x, F.adaptive_max_pool2d(gradient, x.shape[-2:]))
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x = features[-1]
        for module, low in zip(reversed(self.decoder), reversed(features[:-1]), strict=True):
            x = module(x, low)
        out: Tensor = self.head(x)
        return out


STUDENTS.register("ggl", StudentInfo(GGLNet, "GGL-Net (Zhao et al., 2023)", published_parameters=8_988_000))
