"""MLCL-Net: multiscale local contrast learning network (Yu et al., Infrared Physics and Technology 2022).

A shallow residual encoder of three stages (16, 32, 64 channels, strides 1, 2, 4), multiscale local contrast modules
on each stage, and a concatenating bottom-up fusion at full resolution. The authors' code was not copied; where the
paper leaves a layer open the choice is ours, so counts agree with the released model only approximately.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import LocalContrast, ResidualEncoder, conv_bn_relu, logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo


class MLCLNet(Student):
    """MLCL-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in (16, 32, 64)]
        self.stages = tuple(Stage(c, 2**i) for i, c in enumerate(channels))
        self.encoder = ResidualEncoder(in_channels, channels, blocks=4)
        self.contrast = nn.ModuleList(
            nn.Sequential(LocalContrast(c, (1, 2, 4)), LocalContrast(c, (1, 3, 5))) for c in channels
        )
        self.fuse = nn.ModuleList(conv_bn_relu(high + low, low) for low, high in pairwise(channels))
        self.head = nn.Sequential(
            conv_bn_relu(channels[0], channels[0]), conv_bn_relu(channels[0], channels[0]), logit_layer(channels[0])
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H, W), (B, 32 w, H/2, W/2), (B, 64 w, H/4, W/4)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        maps = [module(f) for module, f in zip(self.contrast, features, strict=True)]
        x = maps[-1]
        for module, low in zip(reversed(self.fuse), reversed(maps[:-1]), strict=True):
            up = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
            x = module(torch.cat([up, low], dim=1))
        out: Tensor = self.head(x)
        return out


STUDENTS.register("mlcl", StudentInfo(MLCLNet, "MLCL-Net (Yu et al., 2022)", published_parameters=657_000))
