"""MSHNet: multi-scale head network (Liu et al., CVPR 2024).

A plain U-Net of residual blocks with channel and spatial attention; a 1x1 head on every decoder stage gives a
prediction of its own, and a 3x3 convolution fuses the four at full resolution. Every layer is the published one, in the
published order. Training supervises the fused map and the four predictions, each at its own resolution, with equal
weights: their mean, as in the released training code, which begins with five epochs on the finest head alone; those are
left out here. The paper's other half is a scale- and location-sensitive loss, which is no part of the network.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import attention_blocks
from istd.students.base import Output, Stage, Student
from istd.students.blocks import logit_bias, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo


class MSHNet(Student):
    """MSHNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    outputs = (Output("fused", 1 / 5), *(Output(f"stride {2**i}", 1 / 5) for i in range(4)))

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.in_channels, self.stages = in_channels, tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = nn.Conv2d(in_channels, c[0], 1)
        self.encoder = nn.ModuleList(
            attention_blocks(c[max(i - 1, 0)], c[i], 1 if i == 0 else 2) for i in range(len(c))
        )
        self.decoder = nn.ModuleList(  # coarsest first: the published order
            attention_blocks(c[i] + c[i + 1], c[i], 1 if i == 0 else 2) for i in reversed(range(4))
        )
        self.heads = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in c[:-1])
        self.fuse = nn.Conv2d(4, 1, 3, padding=1)
        logit_bias(self.fuse)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        return run_stages(self.encoder, self.stem(x))

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        return self.decode_all(features)[0]

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> the fused logits `(B, 1, H, W)`, and those at strides 1, 2, 4 and 8."""
        x, *finer = reversed(features)
        heads: list[Tensor] = []
        for block, head, f in zip(self.decoder, reversed(self.heads), finer, strict=True):
            up = F.interpolate(x, size=f.shape[-2:], mode="bilinear", align_corners=True)
            x = block(torch.cat([f, up], dim=1))
            heads.insert(0, head(x))
        size = features[0].shape[-2:]
        lifted = [heads[0], *(F.interpolate(z, size=size, mode="bilinear", align_corners=True) for z in heads[1:])]
        return (self.fuse(torch.cat(lifted, dim=1)), *heads)


STUDENTS.register("msh", StudentInfo(MSHNet, "MSHNet (Liu et al., 2024)", published_parameters=4_065_513, gflops=12.00))
