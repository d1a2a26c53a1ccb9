"""SCTransNet: spatial-channel cross transformer network (Yuan et al., IEEE TGRS 2024).

A residual U-Net (32 to 256 channels, strides 1 to 16) whose four skip connections pass through transformer blocks
together: every scale asks, all scales answer. Attention runs over channels, so its cost is linear in the pixels. Each
block ends in a feed-forward network that mixes neighbouring pixels at two ranges and gates channels. Every layer is
the published one; the published position embeddings and 16 scalars of each attention enter no output and are left out.

The map used at test is the finest head's. Training supervises it, a head at each coarser level, and a learned mixture
of the five, all with weight 1: the loss is the plain sum in the authors' release and in PAL's (Yu et al., 2025).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Output, Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, mean_layer, run_stages, scaled
from istd.students.cross_transformer import CrossBlock
from istd.students.norms import ChannelNorm
from istd.students.registry import STUDENTS, StudentInfo

PATCHES = (16, 8, 4, 2)  # token size per scale: all scales meet on the grid of stride 16
DEPTH = 4


class LeakyBlock(nn.Module):
    """Residual block of two 3x3 convolutions with leaky ReLUs (slope 0.01), `(B, cin, H, W) -> (B, cout, H, W)`."""

    folds = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout)
        self.conv2, self.norm2 = nn.Conv2d(cout, cout, 3, padding=1), nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity()
        if cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Restore(nn.Module):
    """`relu(bn(conv1x1(up(x))))`, from tokens to the map's resolution, `(B, c, h, w) -> (B, c, factor h, factor w)`."""

    folds = (("conv", "norm"),)

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv, self.norm = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Project and interpolate: weights of sum one commute with a convolution of one pixel, cheaper before."""
        x = self.conv(x)
        x = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return torch.relu_(self.norm(x))


class GatedUp(nn.Module):
    """Upsample (nearest neighbour), gate the skip by both paths' channel means, join, and convolve twice."""

    def __init__(self, channels: int, cout: int) -> None:
        super().__init__()
        self.from_skip, self.from_deep = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.body = nn.Sequential(conv_bn_relu(2 * channels, cout, bias=True), conv_bn_relu(cout, cout, bias=True))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """`(B, c, H/2, W/2), (B, c, H, W) -> (B, cout, H, W)`."""
        # Repeating pixels keeps their mean, so the gate is ready before the map is upsampled.
        gate = (self.from_skip(skip.mean((2, 3))) + self.from_deep(deep.mean((2, 3)))).mul(0.5).sigmoid()
        up = F.interpolate(deep, scale_factor=2, mode="nearest")
        out: Tensor = self.body(torch.cat([torch.relu(skip * gate[..., None, None]), up], dim=1))
        return out


class SCTransNet(Student):
    """SCTransNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    contiguous_training = True
    outputs = (Output("finest"), *(Output(f"stride {s}") for s in (16, 8, 4, 2)), Output("mixture"))

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        c = [scaled(n, width) for n in (32, 64, 128, 256, 256)]
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.encoder = nn.ModuleList(LeakyBlock(in_channels if i == 0 else c[i - 1], n) for i, n in enumerate(c))
        skips = c[:4]
        self.embed = nn.ModuleList(nn.Conv2d(n, n, p, p) for n, p in zip(skips, PATCHES, strict=True))
        self.blocks = nn.ModuleList(CrossBlock(skips) for _ in range(DEPTH))
        self.norm = nn.ModuleList(ChannelNorm(n) for n in skips)
        self.restore = nn.ModuleList(Restore(n, p) for n, p in zip(skips, PATCHES, strict=True))
        self.decoder = nn.ModuleList(GatedUp(c[i], c[max(i - 1, 0)]) for i in reversed(range(4)))
        self.head = logit_layer(c[0])
        self.sides = nn.ModuleList(logit_layer(n) for n in (c[4], c[2], c[1], c[0]))
        self.mix = mean_layer(5)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 32 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        return run_stages(self.encoder, x)

    def _maps(self, features: list[Tensor]) -> list[Tensor]:
        """Encoder outputs -> decoded maps of strides 16, 8, 4, 2, 1."""
        *skips, x = features
        tokens = [embed(f) for embed, f in zip(self.embed, skips, strict=True)]
        for block in self.blocks:
            tokens = block(tokens)
        restored = [up(norm(t)) for up, norm, t in zip(self.restore, self.norm, tokens, strict=True)]
        maps = [x]
        for up, r, f in zip(self.decoder, reversed(restored), reversed(skips), strict=True):
            # Once in the transformer and once around it, the published network adds the encoder's map.
            maps.append(up(maps[-1], torch.add(r, f, alpha=2)))
        return maps

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the finest head."""
        out: Tensor = self.head(self._maps(features)[-1])
        return out

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits of the finest head, of strides 16, 8, 4, 2, and of the mixture."""
        *coarse, fine = self._maps(features)
        finest = self.head(fine)
        wide = [
            F.interpolate(side(m), size=finest.shape[-2:], mode="bilinear", align_corners=True)
            for side, m in zip(self.sides, coarse, strict=True)
        ]
        return finest, *wide, self.mix(torch.cat([*reversed(wide), finest], dim=1))


_SILENT = (
    *(f"mtc.embeddings_{i}.position_embeddings" for i in range(1, 5)),
    *(
        f"mtc.encoder.layer.{layer}.channel_attn.q{i}_attn{j}"
        for layer in range(DEPTH)
        for i in range(1, 5)
        for j in range(1, 5)
    ),
)
STUDENTS.register(
    "sctrans",
    StudentInfo(
        SCTransNet, "SCTransNet (Yuan et al., 2024)", published_parameters=11_326_579, gflops=20.58, left_out=_SILENT
    ),
)
