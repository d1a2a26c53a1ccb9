"""DNA-Net: densely nested attention network (Li et al., IEEE TIP 2023).

A U-Net++ grid of residual blocks with channel and spatial attention: node (i, j) lies at stride 2**i and takes all
nodes of its row before it, the node below it (upsampled) and, except in the first row, the node above it (downsampled).
The last nodes of all rows are brought to full resolution and fused. Every layer is the published one, in the published
order. Training supervises the fused map and the maps of nodes (0, 1), (0, 2) and (0, 3) with equal weights, their mean
as in the released training code; of the four the fused one is used at test.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import AttentionBlock, attention_blocks
from istd.students.base import Output, Stage, Student
from istd.students.blocks import logit_layer, run_stages, scaled
from istd.students.registry import STUDENTS, StudentInfo

ROWS = 5


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class DNANet(Student):
    """DNA-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    contiguous_training = True
    outputs = tuple(Output(name, 1 / 4) for name in ("fused", "node 0,1", "node 0,2", "node 0,3"))

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.in_channels, self.stages = in_channels, tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.encoder = nn.ModuleList(
            attention_blocks(in_channels if i == 0 else c[i - 1], c[i], 1 if i == 0 else 2) for i in range(ROWS)
        )
        self.nodes = nn.ModuleDict()
        for j in range(1, ROWS):
            for i in range(ROWS - j):
                above = c[i - 1] if i else 0
                self.nodes[f"{i}_{j}"] = attention_blocks(j * c[i] + c[i + 1] + above, c[i], 1 if i == 0 else 2)
        self.fuse = AttentionBlock(ROWS * c[0], c[0])
        self.project = nn.ModuleList(nn.Conv2d(c[i], c[0], 1) for i in reversed(range(1, ROWS)))
        self.side_heads = nn.ModuleList(logit_layer(c[0]) for _ in range(3))
        self.head = logit_layer(c[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), ..., (B, 256 w, H/16, W/16)]`: the grid's first column."""
        return run_stages(self.encoder, x)

    def _grid(self, features: list[Tensor]) -> list[list[Tensor]]:
        """The rest of the grid: its rows, finest first."""
        rows = [[f] for f in features]
        for j in range(1, ROWS):
            for i in range(ROWS - j):
                parts = [*rows[i], _resize(rows[i + 1][j - 1], rows[i][0])]
                if i:
                    parts.append(_resize(rows[i - 1][j], rows[i][0]))
                rows[i].append(self.nodes[f"{i}_{j}"](torch.cat(parts, dim=1)))
        return rows

    def _fused(self, rows: list[list[Tensor]]) -> Tensor:
        *lower, top = [row[-1] for row in reversed(rows)]
        lifted = [_resize(project(x), top) for project, x in zip(self.project, lower, strict=True)]
        out: Tensor = self.head(self.fuse(torch.cat([*lifted, top], dim=1)))
        return out

    def decode(self, features: list[Tensor]) -> Tensor:
        """The rest of the grid and the fusion: encoder outputs -> logits `(B, 1, H, W)`."""
        return self._fused(self._grid(features))

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits of `outputs`, each `(B, 1, H, W)`."""
        rows = self._grid(features)
        sides = (head(x) for head, x in zip(self.side_heads, rows[0][1:-1], strict=True))
        return (self._fused(rows), *sides)


STUDENTS.register("dna", StudentInfo(DNANet, "DNA-Net (Li et al., 2023)", published_parameters=4_696_888, gflops=27.85))
