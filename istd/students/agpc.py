"""AGPC-Net: attention-guided pyramid context network (Zhang et al., IEEE TAES 2023).

A ResNet-18 without its max pooling, so that the deepest map has stride 8; a pyramid of context blocks on that map; and
two asymmetric fusions back to stride 2. At width 1 every layer is the published one (the post-attention form with
patches at scales 10, 6, 5 and 3, as in the PAL release). Three things are computed in another order with the same
result: projections of a patch's attention are taken from the whole map, all patches of one size form one batch, and the
1x1 convolution of a fusion comes before the upsampling. The pyramid is zero-initialised (gamma = 0), as published.

One output; trained in the release with one loss on it.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import modulation_gate
from istd.students.base import Stage, Student
from istd.students.blocks import BasicBlock, conv_bn_relu, logit_layer, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo

SCALES = (10, 6, 5, 3)  # patches per side


class _Run(NamedTuple):
    """Adjacent patches of one size along one side: the pixels and the patches they cover, as (start, end)."""

    pixels: tuple[int, int]
    patches: tuple[int, int]

    @property
    def number(self) -> int:
        return self.patches[1] - self.patches[0]


def _runs(size: int, scale: int) -> list[_Run]:
    step, rest = divmod(size, scale)
    if rest == 0:
        return [_Run((0, size), (0, scale))]
    edge = step * (scale - 1)
    runs = [_Run((0, edge), (0, scale - 1)), _Run((edge, size), (scale - 1, scale))]
    return [run for run in runs if run.pixels[0] < run.pixels[1]]


class NonLocal(nn.Module):
    """`x + gamma V softmax(Q'K)'`: every position of a patch attends to every other (Wang et al., CVPR 2018).

    With s patches per side, rows (and columns) are divided into s - 1 runs of floor(H / s) and one of what remains.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query, self.key = nn.Conv2d(channels, hidden, 1), nn.Conv2d(channels, hidden, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, gate: Tensor | None = None, scale: int = 1) -> Tensor:
        """Attention within each of `scale` x `scale` patches of `(B, c, H, W)`, times its gate `(B, c, scale, scale)`.

        A patch without pixels, on maps smaller than `scale`, has no output and drops out.
        """
        maps = (self.query(x), self.key(x), self.value(x), x)
        rows, columns = _runs(x.shape[2], scale), _runs(x.shape[3], scale)
        return torch.cat(
            [torch.cat([self._attend(maps, gate, row, column) for column in columns], dim=3) for row in rows], dim=2
        )

    def _attend(self, maps: tuple[Tensor, ...], gate: Tensor | None, row: _Run, column: _Run) -> Tensor:
        """All patches of one size at once."""
        (r0, r1), (c0, c1) = row.pixels, column.pixels
        height, width = (r1 - r0) // row.number, (c1 - c0) // column.number

        def patches(m: Tensor) -> Tensor:
            """`(B, c, H, W) -> (B, row, column, c, pixels of the patch)`."""
            split = m[:, :, r0:r1, c0:c1].reshape(*m.shape[:2], row.number, height, column.number, width)
            return split.permute(0, 2, 4, 1, 3, 5).flatten(4)

        q, k, v, x = (patches(m) for m in maps)
        attention = (q.transpose(-1, -2) @ k).softmax(dim=-1)
        out = self.gamma * (v @ attention.transpose(-1, -2)) + x
        if gate is not None:
            (i0, i1), (j0, j1) = row.patches, column.patches
            out = out * gate[:, :, i0:i1, j0:j1].permute(0, 2, 3, 1)[..., None]
        out = out.view(*out.shape[:4], height, width).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(len(x), -1, r1 - r0, c1 - c0)


class GlobalContext(nn.Module):
    """A gate for every patch and channel: maxima per patch, attention among patches, and 1x1 convolutions."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.attention = NonLocal(channels, reduction=1)
        self.gate = modulation_gate(channels, pool=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c, H, W) -> (B, c, scale, scale)`."""
        out: Tensor = self.gate(self.attention(F.adaptive_max_pool2d(x, self.scale)))
        return out


class ContextBlock(nn.Module):
    """`relu(x + gamma bn(conv3x3(attention within patches * gate of the patch)))`, `(B, c, H, W) -> (B, c, H, W)`.

    Source: Zhang et al. (2023), attention-guided context block.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.gamma = nn.Parameter(torch.zeros(1))
        self.local = NonLocal(channels, reduction=4)
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.context = GlobalContext(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu(self.gamma * self.conv(self.local(x, self.context(x), self.scale)) + x)


class ContextPyramid(nn.Module):
    """Context blocks at several scales on a reduced map, joined with it: `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(channels, inner, 1, bias=True)
        self.blocks = nn.ModuleList(ContextBlock(inner, scale) for scale in SCALES)
        self.expand = conv_bn_relu(inner * (len(SCALES) + 1), channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the pyramid."""
        x = self.reduce(x)
        out: Tensor = self.expand(torch.cat([x, *(block(x) for block in self.blocks)], dim=1))
        return out


class AsymmetricFusion(nn.Module):
    """`conv3x3(low + h) * channels(h) * pixels(low)`, h the coarse map at the channels and size of the fine one.

    Source: Zhang et al. (2023), asymmetric fusion module.
    """

    folds = (("reduce", "norm.0"),)

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.pixels = modulation_gate(low, pool=False)
        self.reduce = nn.Conv2d(high, low, 1)
        self.norm = nn.Sequential(nn.BatchNorm2d(low), nn.ReLU(inplace=True))
        self.channels = modulation_gate(low, pool=True)
        self.post = conv_bn_relu(low, low, bias=True)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """`(B, high, h, w)` and `(B, low, H, W)` -> `(B, low, H, W)`."""
        # Interpolation mixes pixels and the 1x1 convolution mixes channels, so they commute; this way it is cheaper.
        x = F.interpolate(self.reduce(high), size=low.shape[-2:], mode="bilinear", align_corners=True)
        x = self.norm(x)
        out: Tensor = self.post(low + x) * self.channels(x) * self.pixels(low)
        return out


class AGPCNet(Student):
    """AGPC-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    contiguous_training = True

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (64, 128, 256, 512)]
        self.in_channels = in_channels
        self.stages = tuple(Stage(n, 2 * 2**i) for i, n in enumerate(c[1:]))
        self.stem = conv_bn_relu(in_channels, c[0], 7)
        steps = [(c[0], c[0], 1), *((low, high, 2) for low, high in pairwise(c))]
        self.encoder = nn.ModuleList(
            nn.Sequential(BasicBlock(low, high, stride), BasicBlock(high, high)) for low, high, stride in steps
        )
        self.fuse = nn.ModuleList(AsymmetricFusion(high, low) for low, high in reversed([*pairwise(c[1:])]))
        inner = max(c[1] // 4, 1)
        self.head = nn.Sequential(conv_bn_relu(c[1], inner, bias=True), nn.Dropout(0.1), logit_layer(inner))
        self.context = ContextPyramid(c[3], scaled(32, width))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 128 w, H/2, W/2), (B, 256 w, H/4, W/4), (B, 512 w, H/8, W/8)]`."""
        return run_stages(self.encoder, self.stem(x), pool=False)[1:]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        *fine, coarse = features
        x = self.context(coarse)
        for fuse, low in zip(self.fuse, reversed(fine), strict=True):
            x = fuse(x, low)
        return F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=True)


STUDENTS.register(
    "agpc", StudentInfo(AGPCNet, "AGPC-Net (Zhang et al., 2023)", published_parameters=12_360_461, gflops=84.36)
)
