"""The spatial-channel cross transformer of SCTransNet (Yuan et al., IEEE TGRS 2024), over maps of several scales."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.norms import ChannelNorm

EXPANSION = 2.66  # hidden channels of a feed-forward network, as a multiple of its input's


def _pointwise(channels: Sequence[int]) -> list[nn.Conv2d]:
    return [nn.Conv2d(c, c, 1, bias=False) for c in channels]


def _by_groups(channels: int, size: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels // size, bias=False)


class ChannelCrossAttention(nn.Module):
    """Spatially embedded channel cross attention: the channels of one scale attend to the channels of all scales.

    Q_i `(c_i, n)` of scale i comes from a 1x1 and a 3x3 convolution in groups of two channels, K and V `(sum c, n)` of
    all scales joined from a 1x1 and a depthwise 3x3 one. Rows of Q and K have length 1, and with S normalising a matrix
    to mean 0 and variance 1: `out_i = project_i(softmax(S(Q_i K' / sqrt(sum c))) V)`.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.sizes, total = list(channels), sum(channels)
        # All 1x1 convolutions before all 3x3 ones: the published order of parameters.
        self.ask, self.key, self.value = nn.ModuleList(_pointwise(channels)), *_pointwise([total, total])
        self.near_ask = nn.ModuleList(_by_groups(c, 2) for c in channels)
        self.near_key, self.near_value = _by_groups(total), _by_groups(total)
        self.project = nn.ModuleList(_pointwise(channels))

    def forward(self, maps: Sequence[Tensor], joined: Tensor) -> list[Tensor]:
        """Maps `[(B, c_i, h, w)]` and all of them joined `(B, sum c, h, w)`, both normalised -> `[(B, c_i, h, w)]`."""
        queries = [near(ask(x)) for near, ask, x in zip(self.near_ask, self.ask, maps, strict=True)]
        query = F.normalize(torch.cat(queries, dim=1).flatten(2), dim=-1)
        key = F.normalize(self.near_key(self.key(joined)).flatten(2), dim=-1)
        value = self.near_value(self.value(joined)).flatten(2)
        scores = torch.split(query @ key.transpose(1, 2) / math.sqrt(key.shape[1]), self.sizes, dim=1)
        attention = torch.cat([F.layer_norm(s, s.shape[1:]) for s in scores], dim=1).softmax(dim=-1)
        answers = torch.split((attention @ value).unflatten(2, joined.shape[2:]), self.sizes, dim=1)
        return [project(a) for project, a in zip(self.project, answers, strict=True)]


class FeedForward(nn.Module):
    """Complementary feed-forward network: depthwise 3x3 and 5x5 paths, joined, under a gate per channel.

    The gate is a convolution along the channels' means (ECA-Net, Wang et al., CVPR 2020).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.near, self.far = _by_groups(hidden), _by_groups(hidden, kernel=5)
        self.reduce = nn.Conv2d(2 * hidden, channels, 1, bias=False)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c, h, w) -> (B, c, h, w)`."""
        a, b = self.expand(x).chunk(2, dim=1)
        y = self.reduce(torch.relu(torch.cat([self.near(a), self.far(b)], dim=1)))
        gate = self.gate(y.mean((2, 3))[:, None]).sigmoid()[:, 0]
        out: Tensor = y * gate[..., None, None]
        return out


class CrossBlock(nn.Module):
    """One spatial-channel cross transformer block over all scales, residual around attention and feed-forward."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.before = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.joined = ChannelNorm(sum(channels))
        self.attention = ChannelCrossAttention(channels)
        self.between = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.forwards = nn.ModuleList(FeedForward(c) for c in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """`[(B, c_i, h, w)] -> [(B, c_i, h, w)]`."""
        normal = [norm(x) for norm, x in zip(self.before, maps, strict=True)]
        attended = self.attention(normal, self.joined(torch.cat(maps, dim=1)))
        maps = [x + y for x, y in zip(maps, attended, strict=True)]
        return [x + f(n(x)) for x, n, f in zip(maps, self.between, self.forwards, strict=True)]
