"""UIU-Net: U-Net in U-Net (Wu et al., IEEE TIP 2023).

A U-Net whose every stage is itself a residual U-Net (the RSU block of U2-Net, Qin et al., 2020), so that a stage sees
far while its output keeps its resolution. Coarse and fine maps meet in interactive-cross attention: each is gated by
the other, and both go on. The authors' code was not copied; where the paper leaves a layer open the choice is ours, so
counts agree only approximately. The side outputs, which serve deep supervision, are left out: the loss is the
harness's, the same for every student.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import modulation_gate
from istd.students.base import Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ResidualU(nn.Module):
    """RSU block: `h + U(h)`, h = conv(x), U a small U-Net of `depth` levels; `(B, cin, H, W) -> (B, cout, H, W)`.

    Each level halves the size (or, `dilated`, doubles the dilation instead, where nothing is left to halve); the
    lowest dilates.

    Source: Qin et al. (U2-Net, Pattern Recognition 2020), section 3.1.
    """

    def __init__(self, cin: int, hidden: int, cout: int, depth: int, dilated: bool = False) -> None:
        super().__init__()
        self.dilated = dilated
        rates = [2**i if dilated else 1 for i in range(depth - 1)]
        self.entry = conv_bn_relu(cin, cout)
        self.down = nn.ModuleList(
            conv_bn_relu(cout if i == 0 else hidden, hidden, dilation=rate) for i, rate in enumerate(rates)
        )
        self.bottom = conv_bn_relu(hidden, hidden, dilation=2 * rates[-1])
        self.up = nn.ModuleList(
            conv_bn_relu(2 * hidden, cout if i == 0 else hidden, dilation=rate) for i, rate in enumerate(rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        entry: Tensor = self.entry(x)
        features, x = [], entry
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2, ceil_mode=True) if i and not self.dilated else x)
            features.append(x)
        x = self.bottom(x)
        for level, low in zip(reversed(self.up), reversed(features), strict=True):
            x = level(torch.cat([_resized(x, low), low], dim=1))
        return entry + x


class CrossAttention(nn.Module):
    """`[conv3x3(2 low * topdown(high)), 2 high * bottomup(low)]` along channels, `(B, c, H, W) x 2 -> (B, 2 c, H, W)`.

    Source: Wu et al. (2023), interactive-cross attention (gates of ACM, both maps kept apart).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.topdown, self.bottomup = (modulation_gate(channels, pool) for pool in (True, False))
        self.post = conv_bn_relu(channels, channels)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Gate a coarse map, already upsampled, and a fine one by each other."""
        return torch.cat([self.post(2 * low * self.topdown(high)), 2 * high * self.bottomup(low)], dim=1)


class UIUNet(Student):
    """UIU-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (64, 128, 256, 512, 512, 512)]
        hidden = [scaled(n, width) for n in (32, 32, 64, 128, 256, 256)]
        depths = (7, 6, 5, 4, 4, 4)
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.encoder = nn.ModuleList(
            ResidualU(in_channels if i == 0 else c[i - 1], hidden[i], c[i], depths[i], dilated=i > 3) for i in range(6)
        )
        out = [scaled(n, width) for n in (64, 64, 128, 256, 512)]
        inner = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.fuse = nn.ModuleList(CrossAttention(n) for n in c[:-1])
        self.decoder = nn.ModuleList(ResidualU(2 * c[i], inner[i], out[i], depths[i], dilated=i > 3) for i in range(5))
        self.head = logit_layer(out[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 64 w, H, W), (B, 128 w, H/2, W/2), ..., (B, 512 w, H/32, W/32)]`."""
        return run_stages(self.encoder, x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        *fine, x = features
        for stage, fuse, low in zip(reversed(self.decoder), reversed(self.fuse), reversed(fine), strict=True):
            x = stage(fuse(_resized(x, low), low))
        out: Tensor = self.head(x)
        return out


STUDENTS.register("uiu", StudentInfo(UIUNet, "UIU-Net (Wu et al., 2023)", published_parameters=50_541_000))
