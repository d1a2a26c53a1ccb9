"""ALCNet: attentional local contrast network (Dai et al., IEEE TGRS 2021).

The small residual encoder of ACM; at each of its stages a parameter-free local contrast measure, and a top-down path
that adds coarse maps to fine ones where the fine one says so (bottom-up local attention). The authors' code was not
copied; where the paper leaves a layer open the choice is ours, so counts agree only approximately.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import modulation_gate
from istd.students.base import Stage, Student
from istd.students.blocks import ResidualEncoder, conv_bn_relu, logit_layer, quarter_stem, scaled
from istd.students.registry import STUDENTS, StudentInfo

SHIFTS = (13, 17)
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, 1))  # one of each opposite pair


def local_contrast(x: Tensor, shifts: Sequence[int] = SHIFTS) -> Tensor:
    """How much a pixel stands out from all sides at once, `(B, c, H, W) -> (B, c, H, W)`.

    `max_d min_k (x - x[+d e_k]) (x - x[-d e_k])` over shifts d and the four pairs of opposite directions e_k; shifts
    are cyclic. Positive only where x exceeds (or falls below) both neighbours of every pair.

    Source: Dai et al. (2021), equations 1 to 5; Wei et al. (2016), the patch-based measure that it dilates.
    """

    def side(y: int, x_: int) -> Tensor:
        return x - x.roll((y, x_), dims=(2, 3))

    scales = [torch.stack([side(d * i, d * j) * side(-d * i, -d * j) for i, j in DIRECTIONS]).amin(0) for d in shifts]
    return torch.stack(scales).amax(0)


class LocalAttention(nn.Module):
    """`high * bottomup(low) + low`, both maps `(B, c, H, W)` (Dai et al., 2021, equation 9)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bottomup = modulation_gate(channels, pool=False)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Add a coarse map, already upsampled, to a fine one."""
        out: Tensor = high * self.bottomup(low) + low
        return out


class ALCNet(Student):
    """ALCNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        stem, *channels = (scaled(c, width) for c in (8, 16, 32, 64))
        self.stages = tuple(Stage(c, 4 * 2**i) for i, c in enumerate(channels))
        self.encoder = ResidualEncoder(
            in_channels, channels, blocks=4, stem=quarter_stem(in_channels, stem, channels[0])
        )
        top = channels[-1]
        self.contrast = nn.ModuleList(conv_bn_relu(c, top) for c in channels)
        self.fuse = nn.ModuleList(LocalAttention(top) for _ in channels[:-1])
        self.head = nn.Sequential(conv_bn_relu(top, top // 4), nn.Dropout(0.1), logit_layer(top // 4))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H/4, W/4), (B, 32 w, H/8, W/8), (B, 64 w, H/16, W/16)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`, upsampled fourfold."""
        *fine, x = (embed(local_contrast(f)) for embed, f in zip(self.contrast, features, strict=True))
        for fuse, low in zip(reversed(self.fuse), reversed(fine), strict=True):
            x = fuse(F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False), low)
        out: Tensor = self.head(x)
        return F.interpolate(out, scale_factor=4, mode="bilinear", align_corners=False)


STUDENTS.register("alcnet", StudentInfo(ALCNet, "ALCNet (Dai et al., 2021)", published_parameters=520_000))
