"""The attention of GSFA-Net (Deng et al., IEEE TGRS 2025) among maps of all levels, which meet as tokens on one grid.

All layers are the published ones; only interpolation and a 1x1 convolution change places, which commute. The tokens are
those of images of 256 pixels a side: patches of 32 pixels (of the input), half overlapping. Not published is what
happens below 48 pixels, where the grid of tokens has fewer than two places a side: maps are padded with zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import SqueezeExcitation
from istd.students.blocks import depthwise, norm_relu
from istd.students.norms import ChannelNorm

PATCHES = (32, 16, 8, 4)  # of every level: the grid is common
EXPANSION = 2.66


class PixelGate(nn.Module):
    """One gate per place for the tokens of all levels, from depthwise convolutions of 7, 5, 3 and 1 and their union.

    Source: Deng et al. (2025), multi-level spatial attention.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        total = sum(channels)
        inner = [max(c // 8, 1) for c in channels]
        union = max(total // 8, 1)
        self.union = nn.Sequential(nn.Conv2d(total, union, 1), nn.BatchNorm2d(union))
        self.levels = nn.ModuleList()  # from the deepest on, as published
        for c, i, kernel in reversed([*zip(channels, inner, (7, 5, 3, 1), strict=True)]):
            spread = [depthwise(c, kernel)] if kernel > 1 else []
            self.levels.append(nn.Sequential(*spread, nn.Conv2d(c, i, 1), *norm_relu(i)))
        joined = sum(inner) + union
        self.squeeze = SqueezeExcitation(joined, reduction=10)
        self.gate = nn.Conv2d(joined, 1, 1)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Tokens `[(B, c_i, h, w)]` -> `(B, 1, h, w)`."""
        parts = [level(t) for level, t in zip(reversed(self.levels), tokens, strict=True)]
        x = torch.cat([*parts, self.union(torch.cat([*tokens], dim=1))], dim=1)
        out: Tensor = self.gate(self.squeeze(x)).sigmoid()
        return out


class FeedForward(nn.Sequential):
    """1x1 convolution to 5.32 times the channels, normalisation, ReLU, and back."""

    def __init__(self, channels: int) -> None:
        hidden = 2 * int(channels * EXPANSION)
        super().__init__(
            nn.Conv2d(channels, hidden, 1, bias=False),
            ChannelNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )


class ChannelKernelAttention(nn.Module):
    """Channels of every level are weighted by how near they lie to a mixture of all levels, then fed forward.

    With q, k, v 1x1 convolutions of the level's own and of all levels' normalised tokens, q and k of unit length over
    the places, r_c = q_c - k_c: `a = softmax_c(exp(-|r_c|^2 / (2 var(r_c))))`, and `t + out(a v)` is the result.

    Source: Deng et al. (2025), multi-level channel attention with a Gaussian kernel.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        total = sum(channels)
        self.norms = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.norm = ChannelNorm(total)
        self.maps = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(c, c, 1), nn.Conv2d(total, c, 1), nn.Conv2d(total, c, 1)]) for c in channels
        )
        self.project = nn.ModuleList(nn.Conv2d(c, c, 1, bias=False) for c in channels)
        self.feed_norms = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.feed = nn.ModuleList(FeedForward(c) for c in channels)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """`[(B, c_i, h, w)] -> [(B, c_i, h, w)]`."""
        joined = self.norm(torch.cat([*tokens], dim=1))
        out = []
        for t, norm, (query, key, value), project, feed_norm, feed in zip(
            tokens, self.norms, self.maps, self.project, self.feed_norms, self.feed, strict=True
        ):
            q, k = (F.normalize(x.flatten(2), dim=-1) for x in (query(norm(t)), key(joined)))
            r = q - k
            similarity = torch.exp(-r.square().sum(-1) / (2 * r.var(-1)))
            y = t + project(similarity.softmax(1)[..., None, None] * value(joined))
            out.append(y + feed(feed_norm(y)))
        return out


class LevelBlock(nn.Module):
    """Channel attention with a residual, normalisation, and the common gate: `t <- (1 + g) t`."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.pixels = PixelGate(channels)
        self.channels = ChannelKernelAttention(channels)
        self.norms = nn.ModuleList(ChannelNorm(c) for c in channels)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """`[(B, c_i, h, w)] -> [(B, c_i, h, w)]`."""
        mixed = [norm(a + t) for norm, a, t in zip(self.norms, self.channels(tokens), tokens, strict=True)]
        gate = 1 + self.pixels(mixed)
        return [t * gate for t in mixed]


class Rebuild(nn.Module):
    """From tokens to a map: 1x1 convolution, interpolation, normalisation, ReLU."""

    folds = (("conv", "norm.0"),)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.Sequential(*norm_relu(channels))

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """`(B, c, h, w) -> (B, c, *size)`."""
        # Published after the interpolation, with which a 1x1 convolution commutes; here it has fewer pixels.
        x = F.interpolate(self.conv(tokens), size=size, mode="bilinear", align_corners=False)
        out: Tensor = self.norm(x)
        return out


class MultiLevelAttention(nn.Module):
    """Tokens of all levels on one grid, through two blocks, back to the maps as a residual.

    Source: Deng et al. (2025), multi-level aggregation.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(c, c, p, stride=p // 2) for c, p in zip(channels, PATCHES, strict=True))
        self.blocks = nn.Sequential(LevelBlock(channels), LevelBlock(channels))
        self.rebuild = nn.ModuleList(Rebuild(c) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`[(B, c_i, H_i, W_i)]`, each half the size of the one before -> the same shapes."""
        tokens = []
        for embed, x, patch in zip(self.embed, maps, PATCHES, strict=True):
            missing = [max(patch + patch // 2 - n, 0) for n in x.shape[-2:]]  # to two places a side
            tokens.append(embed(F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x))
        mixed = self.blocks(tokens)
        return [x + rebuild(t, x.shape[-2:]) for rebuild, t, x in zip(self.rebuild, mixed, maps, strict=True)]
