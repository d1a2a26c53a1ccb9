"""ACM-FPN/U-Net: asymmetric contextual modulation (Dai et al., WACV 2021), its U-Net form.

A small residual encoder that works at a quarter of the input's resolution, and a decoder that fuses a coarse and a fine
map by two gates: the coarse one says per channel what to keep of the fine one (top-down, from the global mean), the
fine one says per pixel what to keep of the coarse one (bottom-up, point by point).

Every layer is the published one, in the published order. Two releases differ: `acm` is the network of PAL (2025), with
one-group normalisation in the fusion and three input channels; `acm-lesps` that of LESPS (2023), with batch
normalisation and one input channel, whose trained weights are public.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import run_stages, scaled
from istd.students.quarter import (
    AsymmetricModulation,
    logit_head,
    quarter_stem,
    residual_blocks,
    residual_stages,
    upsampling,
)
from istd.students.registry import STUDENTS, StudentInfo


class UpStage(nn.Module):
    """Upsample a coarse map, fuse it with a fine one, and refine it by three residual blocks."""

    def __init__(self, high: int, low: int, norm: str) -> None:
        super().__init__()
        self.up = upsampling(high, low)
        self.refine = residual_blocks(low, low, 3)
        self.fuse = AsymmetricModulation(low, norm)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, H/2, W/2), (B, low, H, W) -> (B, low, H, W)`."""
        out: Tensor = self.refine(self.fuse(self.up(high), low))
        return out


class ACMNet(Student):
    """ACM in its U-Net form with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        norm: normalisation of the fusion, `"group"` or `"batch"`.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3, norm: str = "group") -> None:
        super().__init__()
        stem, *channels = (scaled(c, width) for c in (8, 16, 32, 64))
        self.in_channels, self.stages = in_channels, tuple(Stage(c, 4 * 2**i) for i, c in enumerate(channels))
        self.stem = quarter_stem(in_channels, stem, channels[0])
        self.encoder = residual_stages(channels, blocks=3)
        self.decoder = nn.ModuleList(UpStage(channels[i + 1], channels[i], norm) for i in (1, 0))
        self.head = logit_head(channels[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H/4, W/4), (B, 32 w, H/8, W/8), (B, 64 w, H/16, W/16)]`."""
        return run_stages(self.encoder, self.stem(x), pool=False)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`, upsampled fourfold."""
        x, *finer = reversed(features)
        for stage, low in zip(self.decoder, finer, strict=True):
            x = stage(x, low)
        return F.interpolate(self.head(x), scale_factor=4, mode="bilinear", align_corners=False)


STUDENTS.register(
    "acm", StudentInfo(ACMNet, "ACM (Dai et al., 2021; form of PAL)", published_parameters=397_971, gflops=0.69)
)
STUDENTS.register(
    "acm-lesps",
    StudentInfo(
        partial(ACMNet, in_channels=1, norm="batch"),
        "ACM (Dai et al., 2021; form of LESPS)",
        published_parameters=397_823,
        gflops=0.69,
    ),
)
