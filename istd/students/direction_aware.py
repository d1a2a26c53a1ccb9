"""The block of MSDA-Net (Zhao et al., IEEE TGRS 2025): branches of growing reach and attention to directions.

All layers are the published ones. Equal to the release but cheaper: one multiplication by the sum of four gates, and
the mean over channels taken before its Haar filter.
"""

import torch
from torch import Tensor, nn

from istd.students.attention import SqueezeExcitation, channel_maximum
from istd.students.blocks import conv_bn_relu
from istd.students.residual import conv_bn
from istd.students.wavelets import haar_bands


class DirectionalAttention(nn.Module):
    """`relu(x + bn(conv3x3(x sum_b g_b)))`, g_b a gate per pixel from Haar band b, `(B, c, H, W) -> (B, c, H, W)`.

    `g_b = sigmoid(conv7x7([maximum over channels of the band, mean over channels of the band]))`.

    Source: Zhao et al. (2025), high-frequency direction injection and direction-aware attention.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3) for _ in range(4))  # for HH, LH, HL, LL
        self.post = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention."""
        ll, lh, hl, hh = (
            torch.cat([channel_maximum(band), mean], dim=1)
            for band, mean in zip(haar_bands(x), haar_bands(x.mean(1, keepdim=True)), strict=True)
        )
        gate = sum(conv(band).sigmoid() for conv, band in zip(self.gates, (hh, lh, hl, ll), strict=True))
        return torch.relu_(x + self.post(x * gate))


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
        return torch.relu_(x + self.post(self.channels(self.directions(self.branches(x)))))
