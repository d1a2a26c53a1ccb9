"""The residual encoder that MLCL-Net, ALCL-Net and GGL-Net share: biased convolutions, and maxima where it narrows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from istd.students.blocks import logit_layer, run_stages


def conv_bn(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution with a bias -> batch normalisation."""
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout))


def double_conv(cin: int, cout: int) -> nn.Sequential:
    """Two of 3x3 convolution -> batch normalisation -> ReLU: the stem, `(B, cin, H, W) -> (B, cout, H, W)`."""
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(*conv_bn(cin, cout), relu, *conv_bn(cout, cout), relu)


class ResidualBlock(nn.Module):
    """`relu(x + bn(conv(relu(bn(conv(x))))))`, `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(channels, channels), nn.ReLU(inplace=True), *conv_bn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu_(self.body(x) + x)


class PoolingBlock(nn.Module):
    """`relu(bn(conv(maxpool(relu(bn(conv(x)))))) + relu(bn(conv2(x))))`, `(B, cin, H, W) -> (B, cout, H/2, W/2)`.

    Unlike the block of He et al. (2016) it convolves at full size and takes 2x2 maxima after; its shortcut is a 3x3
    convolution conv2 of stride 2 with a ReLU of its own.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(cin, cout), nn.ReLU(inplace=True), nn.MaxPool2d(2), *conv_bn(cout, cout))
        self.shortcut = nn.Sequential(*conv_bn(cin, cout, stride=2), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block; H and W even."""
        return torch.relu_(self.body(x) + self.shortcut(x))


class PoolingEncoder(nn.Module):
    """Stem and stages of three blocks, `(B, in_channels, H, W) -> [(B, channels[i], H / 2**i, W / 2**i)]`.

    Every stage but the first begins with a `PoolingBlock`.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.stem = double_conv(in_channels, channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                PoolingBlock(channels[i - 1], c) if i else ResidualBlock(c), ResidualBlock(c), ResidualBlock(c)
            )
            for i, c in enumerate(channels)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, highest resolution first."""
        return run_stages(self.stages, self.stem(x), pool=False)


def local_response(channels: int) -> nn.Sequential:
    """1x1 and 3x3 convolution, each with a ReLU and no normalisation, `(B, c, H, W) -> (B, c, H, W)`.

    What ALCL-Net calls its local contrast module: a learned stencil, in which no difference is taken explicitly.
    """
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(channels, channels, 1), relu, nn.Conv2d(channels, channels, 3, padding=1), relu)


def pixel_head(channels: int) -> nn.Sequential:
    """1x1 convolution, ReLU, 1x1 convolution to one logit, `(B, c, H, W) -> (B, 1, H, W)`."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), logit_layer(channels))
