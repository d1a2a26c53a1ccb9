"""MSHNet: multi-scale head network (Liu et al., CVPR 2024).

A plain U-Net of residual blocks with channel and spatial attention; a 1x1 head on every decoder stage gives a
prediction of its own, and a 3x3 convolution fuses the four at full resolution. The paper's other half is a scale- and
location-sensitive loss, which is a loss and not part of the network.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import attention_blocks
from istd.students.base import Stage, Student
from istd.students.blocks import logit_bias, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo


class MSHNet(Student):
    """MSHNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = nn.Conv2d(in_channels, c[0], 1)
        self.encoder = nn.ModuleList(
            attention_blocks(c[max(i - 1, 0)], c[i], 1 if i == 0 else 2) for i in range(len(c))
        )
        self.decoder = nn.ModuleList(attention_blocks(c[i] + c[i + 1], c[i], 1 if i == 0 else 2) for i in range(4))
        self.heads = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in c[:-1])
        self.fuse = nn.Conv2d(4, 1, 3, padding=1)
        logit_bias(self.fuse)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        return run_stages(self.encoder, self.stem(x))

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x, predictions = features[-1], []
        for i in reversed(range(4)):
            up = F.interpolate(x, size=features[i].shape[-2:], mode="bilinear", align_corners=True)
            x = self.decoder[i](torch.cat([features[i], up], dim=1))
            logits = self.heads[i](x)
            predictions.append(F.interpolate(logits, size=features[0].shape[-2:], mode="bilinear", align_corners=True))
        out: Tensor = self.fuse(torch.cat(predictions[::-1], dim=1))
        return out


STUDENTS.register("msh", StudentInfo(MSHNet, "MSHNet (Liu et al., 2024)", published_parameters=4_066_000))
