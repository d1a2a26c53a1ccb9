"""Convolutional blocks that the students share."""

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F


def scaled(channels: int, width: float) -> int:
    """Channel count of a layer at a `width` factor: round(channels * width) to a multiple of 4, at least 4."""
    return max(4, 4 * round(channels * width / 4))


def conv_bn_relu(
    cin: int, cout: int, kernel: int = 3, dilation: int = 1, bias: bool = False, momentum: float = 0.1
) -> nn.Sequential:
    """Convolution (same padding) -> batch normalisation, whose new batch counts `momentum` -> ReLU.

    A `bias`, which the normalisation takes away again in training, is there where the published network has one.
    """
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=padding, dilation=dilation, bias=bias),
        nn.BatchNorm2d(cout, momentum=momentum),
        nn.ReLU(inplace=True),
    )


def depthwise(channels: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    """Convolution of every channel for itself, same padding."""
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)


def norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    """Batch normalisation and ReLU, to stand after a layer in an `nn.Sequential`."""
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def logit_bias(layer: nn.Conv2d) -> None:
    """Let a layer of logits start at probability 0.01 everywhere.

    Targets cover about a thousandth of an image; from 0.5 the first epochs would be spent on silencing the background
    (the prior of Lin et al., focal loss, 2017).
    """
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -math.log(0.99 / 0.01))


def logit_layer(channels: int, maps: int = 1, kernel: int = 1) -> nn.Conv2d:
    """Convolution (same padding) to `maps` maps of logits, with `logit_bias`."""
    layer = nn.Conv2d(channels, maps, kernel, padding=kernel // 2)
    logit_bias(layer)
    return layer


def mean_layer(maps: int) -> nn.Conv2d:
    """1x1 convolution from several maps of logits to one, which starts as their mean."""
    layer = nn.Conv2d(maps, 1, 1)
    nn.init.constant_(layer.weight, 1 / maps)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def run_stages(stages: Iterable[nn.Module], x: Tensor, pool: bool = True) -> list[Tensor]:
    """Outputs of all stages, each fed with the one before; with `pool`, at half its size (2x2 maxima)."""
    features: list[Tensor] = []
    for stage in stages:
        x = stage(F.max_pool2d(x, 2) if features and pool else x)
        features.append(x)
    return features


class Subsample(nn.Module):
    """Keep every `stride`-th pixel, `(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))`.

    Followed by a 1x1 convolution it equals a strided 1x1 convolution, whose channels-last CPU kernel in torch 2.15
    corrupts memory.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample height and width."""
        return x[..., :: self.stride, :: self.stride]


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al., 2016), `(B, cin, H, W) -> (B, cout, H/stride, W/stride)`.

    Args:
        cin: channels in.
        cout: channels out.
        stride: of the first convolution and the shortcut.
        momentum: what a new batch counts in the statistics of the shortcut's normalisation.
    """

    folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, cin: int, cout: int, stride: int = 1, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(
                Subsample(stride), nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout, momentum=momentum)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(y))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)
