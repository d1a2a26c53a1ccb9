"""ALCL-Net: attention-based local contrast learning network (Yu et al., IEEE GRSL 2022).

A residual encoder of 32 layers (five stages of three blocks, 16 to 256 channels, strides 1 to 16), a local contrast
module on every stage, and a top-down path of simplified bilinear attention modules. The authors' code was not copied;
where the paper leaves a layer open the choice is ours, so counts agree with the released model only approximately.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import LocalContrast, ResidualEncoder, conv_bn_relu, logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo


class BilinearAttention(nn.Module):
    """Simplified bilinear attention: the fine map gates the upsampled coarse map, and both are added.

    `out = conv3x3(low + sigmoid(g(low)) * up(high))` with `g` a 1x1 convolution to one channel and `up` a 1x1
    convolution to the fine map's channels followed by bilinear upsampling.
    """

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.project = conv_bn_relu(high, low, 1)
        self.gate = nn.Sequential(conv_bn_relu(low, low, 1), nn.Conv2d(low, 1, 1), nn.Sigmoid())
        self.fuse = conv_bn_relu(low, low)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2), (B, low, H, W) -> (B, low, H, W)`."""
        up = F.interpolate(self.project(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.fuse(low + self.gate(low) * up)
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
        self.stages = tuple(Stage(c, 2**i) for i, c in enumerate(channels))
        self.encoder = ResidualEncoder(in_channels, channels, blocks=3)
        self.contrast = nn.ModuleList(LocalContrast(c, dilations=(1, 2, 4)) for c in channels)
        self.top_down = nn.ModuleList(BilinearAttention(high, low) for low, high in pairwise(channels))
        self.head = nn.Sequential(conv_bn_relu(channels[0], channels[0]), logit_layer(channels[0]))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        maps = [module(f) for module, f in zip(self.contrast, features, strict=True)]
        x = maps[-1]
        for module, low in zip(reversed(self.top_down), reversed(maps[:-1]), strict=True):
            x = module(x, low)
        out: Tensor = self.head(x)
        return out


STUDENTS.register("alcl", StudentInfo(ALCLNet, "ALCL-Net (Yu et al., 2022)", published_parameters=5_668_000))
