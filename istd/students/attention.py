"""Attention that several students share: gates by channels and by pixels, and a residual block with both."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pixel_maximum(x: Tensor) -> Tensor:
    """Largest value of every channel, `(B, c, H, W) -> (B, c, 1, 1)`.

    Pooling remembers places; `amax` would compare the whole map with its maximum again in the backward pass.
    """
    return F.adaptive_max_pool2d(x, 1)


def channel_maximum(x: Tensor) -> Tensor:
    """Largest value of every pixel, `(B, c, H, W) -> (B, 1, H, W)`.

    By place as `pixel_maximum` where a gradient is wanted and the channels of a pixel lie side by side.
    """
    if torch.is_grad_enabled() and x.is_contiguous(memory_format=torch.channels_last):
        return x.movedim(1, -1).max(-1).values[:, None]
    return x.amax(1, keepdim=True)


class ChannelAttention(nn.Module):
    """`sigmoid(mlp(mean over pixels) + mlp(maximum over pixels))`, `(B, c, H, W) -> (B, c, 1, 1)`.

    Source: Woo et al. (CBAM, ECCV 2018), equation 2.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate of every channel."""
        out: Tensor = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(pixel_maximum(x))
        return out.sigmoid()


class SpatialAttention(nn.Module):
    """`sigmoid(conv7x7([mean over channels, maximum over channels]))`, `(B, c, H, W) -> (B, 1, H, W)`.

    Args:
        maximum_first: stack the maximum before the mean.
        bias: give the convolution a bias.

    Source: Woo et al. (CBAM, ECCV 2018), equation 3.
    """

    def __init__(self, maximum_first: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=bias)
        self.maximum_first = maximum_first

    def forward(self, x: Tensor) -> Tensor:
        """Gate of every pixel."""
        pair = [x.mean(1, keepdim=True), channel_maximum(x)]
        out: Tensor = self.conv(torch.cat(pair[::-1] if self.maximum_first else pair, dim=1))
        return out.sigmoid()


class SqueezeExcitation(nn.Module):
    """`x * sigmoid(W2 relu(W1 mean(x)))`, the mean over pixels, `(B, c, H, W) -> (B, c, H, W)`.

    Source: Hu et al. (CVPR 2018), equations 2 to 4, without biases.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel."""
        out: Tensor = x * self.gate(x.mean((2, 3)))[..., None, None]
        return out


def modulation_gate(channels: int, pool: bool, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """1x1 convolutions through a quarter of the channels to a sigmoid; of the global mean (`pool`), or of every pixel.

    `(B, c, H, W) -> (B, c, 1, 1)`, or `(B, c, H, W)`; `norm` builds the normalisation that follows each convolution.
    Source: Dai et al. (ACM, WACV 2021), equations 3 and 4.
    """
    hidden = max(channels // 4, 2)  # two, since a norm over the channels of one pixel leaves nothing of one
    layers = (
        nn.Conv2d(channels, hidden, 1),
        norm(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, channels, 1),
        norm(channels),
        nn.Sigmoid(),
    )
    return nn.Sequential(*([nn.AdaptiveAvgPool2d(1)] if pool else []), *layers)


class AttentionBlock(nn.Module):
    """Two 3x3 convolutions, channel and spatial attention, and a residual path, `(B, cin, H, W) -> (B, cout, H, W)`.

    DNA-Net and MSHNet are built from it.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1),
            nn.BatchNorm2d(cout),
            nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=1),
            nn.BatchNorm2d(cout),
        )
        self.shortcut: nn.Module = nn.Identity()
        if cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1), nn.BatchNorm2d(cout))
        self.channels, self.pixels = ChannelAttention(cout), SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        shortcut = self.shortcut(x)  # first: then its backward pass is last, and its gradient waits for nothing
        y = self.body(x)
        y = y * self.channels(y)
        y = y * self.pixels(y)
        y += shortcut
        return torch.relu_(y)


def attention_blocks(cin: int, cout: int, count: int) -> nn.Sequential:
    """`count` blocks, the first of which changes the number of channels."""
    return nn.Sequential(*(AttentionBlock(cin if i == 0 else cout, cout) for i in range(count)))
