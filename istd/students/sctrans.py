"""SCTransNet: spatial-channel cross transformer network (Yuan et al., IEEE TGRS 2024).

A residual U-Net (32 to 256 channels, strides 1 to 16) whose four skip connections pass through transformer blocks
together: every scale asks, all scales answer. Attention runs over channels, so its cost is linear in the pixels. Each
block ends in a feed-forward network that mixes neighbouring pixels at two ranges and gates channels. The authors' code
was not copied; where the paper leaves a layer open the choice is ours, so counts agree only approximately.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import BasicBlock, conv_bn_relu, logit_bias, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo

PATCHES = (16, 8, 4, 2)  # token size per scale: all scales meet on the grid of stride 16
EXPANSION = 2.66


class _ChannelNorm(nn.Module):
    """Layer normalisation over channels, pixel by pixel, `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.movedim(1, -1))
        return out.movedim(-1, 1)


def _depthwise(channels: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)


class ChannelCrossAttention(nn.Module):
    """Spatially embedded channel cross attention: the channels of one scale attend to the channels of all scales.

    With Q_i `(c_i, n)` of scale i and K, V `(sum c, n)` of all scales joined, each from a 1x1 and a depthwise 3x3
    convolution: `out_i = project(softmax(norm(Q_i K' / sqrt(sum c))) V)`.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        total = sum(channels)
        self.queries = nn.ModuleList(nn.Sequential(nn.Conv2d(c, c, 1, bias=False), _depthwise(c)) for c in channels)
        self.key = nn.Sequential(nn.Conv2d(total, total, 1, bias=False), _depthwise(total))
        self.value = nn.Sequential(nn.Conv2d(total, total, 1, bias=False), _depthwise(total))
        self.project = nn.ModuleList(nn.Conv2d(c, c, 1, bias=False) for c in channels)
        self.scale = total**-0.5

    def forward(self, maps: Sequence[Tensor], joined: Tensor) -> list[Tensor]:
        """Maps `[(B, c_i, h, w)]` and all of them joined `(B, sum c, h, w)`, both normalised -> `[(B, c_i, h, w)]`."""
        key, value = (F.normalize(self.key(joined).flatten(2), dim=-1), self.value(joined).flatten(2))
        out = []
        for x, query, project in zip(maps, self.queries, self.project, strict=True):
            q = F.normalize(query(x).flatten(2), dim=-1)
            scores = q @ key.transpose(1, 2) * self.scale
            attention = F.instance_norm(scores[:, None])[:, 0].softmax(dim=-1)
            out.append(project((attention @ value).reshape_as(x)))
        return out


class FeedForward(nn.Module):
    """Complementary feed-forward network: depthwise 3x3 and 5x5 paths, joined, under a gate per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * round(EXPANSION * channels / 2)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.near, self.far = _depthwise(hidden), _depthwise(hidden, 5)
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
        self.before = nn.ModuleList(_ChannelNorm(c) for c in channels)
        self.joined = _ChannelNorm(sum(channels))
        self.attention = ChannelCrossAttention(channels)
        self.between = nn.ModuleList(_ChannelNorm(c) for c in channels)
        self.forwards = nn.ModuleList(FeedForward(c) for c in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """`[(B, c_i, h, w)] -> [(B, c_i, h, w)]`."""
        normal = [norm(x) for norm, x in zip(self.before, maps, strict=True)]
        attended = self.attention(normal, self.joined(torch.cat(maps, dim=1)))
        maps = [x + y for x, y in zip(maps, attended, strict=True)]
        return [x + f(n(x)) for x, n, f in zip(maps, self.between, self.forwards, strict=True)]


class GatedUp(nn.Module):
    """Upsample, gate the skip by both paths' channel means, join, and convolve twice."""

    def __init__(self, deep: int, skip: int, cout: int) -> None:
        super().__init__()
        self.from_skip, self.from_deep = nn.Linear(skip, skip), nn.Linear(deep, skip)
        self.body = nn.Sequential(conv_bn_relu(deep + skip, cout), conv_bn_relu(cout, cout))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """`(B, deep, H/2, W/2), (B, skip, H, W) -> (B, cout, H, W)`."""
        up = F.interpolate(deep, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        gate = (self.from_skip(skip.mean((2, 3))) + self.from_deep(up.mean((2, 3)))).mul(0.5).sigmoid()
        out: Tensor = self.body(torch.cat([torch.relu(skip * gate[..., None, None]), up], dim=1))
        return out


class SCTransNet(Student):
    """SCTransNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        depth: number of cross transformer blocks.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3, depth: int = 4) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (32, 64, 128, 256, 256)]
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.encoder = nn.ModuleList(BasicBlock(in_channels if i == 0 else c[i - 1], n) for i, n in enumerate(c))
        skips = c[:4]
        self.embed = nn.ModuleList(nn.Conv2d(n, n, p, p) for n, p in zip(skips, PATCHES, strict=True))
        self.blocks = nn.ModuleList(CrossBlock(skips) for _ in range(depth))
        self.norm = nn.ModuleList(_ChannelNorm(n) for n in skips)
        self.restore = nn.ModuleList(conv_bn_relu(n, n, 1) for n in skips)
        outputs = [c[0], c[0], c[1], c[2]]
        self.decoder = nn.ModuleList(
            GatedUp(c[4] if i == 3 else outputs[i + 1], skips[i], outputs[i]) for i in range(4)
        )
        self.heads = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in (*outputs, c[4]))
        self.fuse = nn.Conv2d(5, 1, 1)
        logit_bias(self.fuse)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 32 w, H, W), ..., (B, 256 w, H/16, W/16)]`."""
        return run_stages(self.encoder, x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        skips, size = features[:4], features[0].shape[-2:]
        tokens = [embed(f) for embed, f in zip(self.embed, skips, strict=True)]
        maps = tokens
        for block in self.blocks:
            maps = block(maps)
        enriched = []
        for f, m, t, norm, restore in zip(skips, maps, tokens, self.norm, self.restore, strict=True):
            back = F.interpolate(restore(norm(m) + t), size=f.shape[-2:], mode="bilinear", align_corners=False)
            enriched.append(f + back)
        x = features[4]
        predictions = [self.heads[4](x)]
        for i in reversed(range(4)):
            x = self.decoder[i](x, enriched[i])
            predictions.append(self.heads[i](x))
        wide = [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in predictions]
        out: Tensor = self.fuse(torch.cat(wide, dim=1))
        return out


STUDENTS.register("sctrans", StudentInfo(SCTransNet, "SCTransNet (Yuan et al., 2024)", published_parameters=11_327_000))
