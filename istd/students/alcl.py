"""ALCL-Net: attention-based local contrast learning network (Yu et al., IEEE GRSL 2022).

A residual encoder of five stages of three blocks (16 to 256 channels, strides 1 to 16), a local contrast module on
every stage, and a top-down path of simplified bilinear attention modules. Every layer is the published one, in the
published order; only the initial weights are PyTorch's own.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import scaled
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.residual import PoolingEncoder, local_response, pixel_head


class BilinearAttention(nn.Module):
    """`low + relu(bn(up(conv1x1(high)))) * sigmoid(bn(conv1x1(low)))`: the fine map gates the coarse one.

    Published as the convolution of the upsampled map. Bilinear weights sum to one, so the two commute, and here the
    convolution sees a quarter of the pixels; the normalisation does not commute in training, and stays where it is.
    """

    folds = (("project", "activate.0"),)

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(high, low, 1)
        self.activate = nn.Sequential(nn.BatchNorm2d(low), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.Conv2d(low, low, 1), nn.BatchNorm2d(low), nn.Sigmoid())

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2), (B, low, H, W) -> (B, low, H, W)`."""
        up = F.interpolate(self.project(high), size=low.shape[-2:], mode="bilinear", align_corners=True)
        out: Tensor = low + self.activate(up) * self.gate(low)
        return out


class ALCLNet(Student):
    """ALCL-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in (16, 32, 64, 128, 256)]
        self.in_channels, self.stages = in_channels, tuple(Stage(c, 2**i) for i, c in enumerate(channels))
        self.encoder = PoolingEncoder(in_channels, channels)
        # Coarsest first, here and below: the published order.
        self.contrast = nn.ModuleList(local_response(c) for c in reversed(channels))
        self.top_down = nn.ModuleList(BilinearAttention(high, low) for high, low in pairwise(reversed(channels)))
        self.head = pixel_head(channels[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x, *finer = (module(f) for module, f in zip(self.contrast, reversed(features), strict=True))
        for module, low in zip(self.top_down, finer, strict=True):
            x = module(x, low)
        out: Tensor = self.head(x)
        return out


STUDENTS.register(
    "alcl", StudentInfo(ALCLNet, "ALCL-Net (Yu et al., 2022)", published_parameters=5_668_145, gflops=13.14)
)
