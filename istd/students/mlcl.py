"""MLCL-Net: multiscale local contrast learning network (Yu et al., Infrared Physics and Technology 2022).

A shallow residual encoder of three stages (16, 32, 64 channels, strides 1, 2, 4), a multiscale local contrast module
on each stage, and a sum of all three at full resolution. Every layer is the published one, in the published order; only
the initial weights are PyTorch's own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import scaled
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.residual import PoolingEncoder, pixel_head

SCALES = ((1, 1), (3, 3), (5, 5))  # (first kernel, dilation of the second) of the three branches


class MultiscaleContrast(nn.Module):
    """`conv1x1(concat_i relu(conv3x3_{d_i}(relu(conv_{k_i}(x)))))`, `(B, c, H, W) -> (B, c, H, W)`.

    Branch i sees its pixel through a kernel of size k_i and compares places at distance d_i, (k, d) in `SCALES`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, k, padding=k // 2),
                relu,
                nn.Conv2d(channels, channels, 3, padding=d, dilation=d),
                relu,
            )
            for k, d in SCALES
        )
        self.join = nn.Conv2d(len(SCALES) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches."""
        out: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return out


class MLCLNet(Student):
    """MLCL-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in (16, 32, 64)]
        self.in_channels, self.stages = in_channels, tuple(Stage(c, 2**i) for i, c in enumerate(channels))
        self.encoder = PoolingEncoder(in_channels, channels)
        # Coarsest first, here and below: the published order.
        self.contrast = nn.ModuleList(MultiscaleContrast(c) for c in reversed(channels))
        self.lift = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels[-1], 1), nn.ReLU(inplace=True)) for c in reversed(channels)
        )
        self.head = pixel_head(channels[-1])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), (B, 32 w, H/2, W/2), (B, 64 w, H/4, W/4)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x = None
        for contrast, lift, f in zip(self.contrast, self.lift, reversed(features), strict=True):
            y = lift(contrast(f))
            if x is not None:
                y = y + F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=True)
            x = y
        out: Tensor = self.head(x)
        return out


STUDENTS.register(
    "mlcl", StudentInfo(MLCLNet, "MLCL-Net (Yu et al., 2022)", published_parameters=657_249, gflops=14.02)
)
