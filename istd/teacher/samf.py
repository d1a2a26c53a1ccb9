"""SAMF: semantic feature maps of a frozen vision foundation model, fused into a CNN's bottleneck pixel by pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.teacher.depths import Depths, as_grid


class FusionBlock(nn.Module):
    """One fusion of CNN features X with semantic features D of the same size.

    X is split along channels into (A, B); then `Y_a = conv(A * conv(D))`, `Y_b = conv(B + conv(D))`, and the output is
    `conv([Y_a, Y_b] + X)`: a multiplicative and an additive path under one residual connection. At the start the
    second convolutions of both paths are zero and the last is the identity, so the block is the identity.

    Args:
        channels: channels C of X, even.
        dim: channels of D.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        half = channels // 2
        self.times, self.plus = nn.Conv2d(dim, half, 1), nn.Conv2d(dim, channels - half, 1)
        self.after_times = nn.Conv2d(half, half, 3, padding=1)
        self.after_plus = nn.Conv2d(channels - half, channels - half, 3, padding=1)
        self.out = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.after_times, self.after_plus):
            nn.init.zeros_(layer.weight)
        nn.init.dirac_(self.out.weight)
        for layer in (self.after_times, self.after_plus, self.out):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, semantic: Tensor) -> Tensor:
        """`(B, C, h, w)` and `(B, dim, h', w')` -> `(B, C, h, w)`; D's two embeddings are resized to X."""
        size = x.shape[-2:]
        times, plus = (
            F.interpolate(conv(semantic), size=size, mode="bilinear", align_corners=False)
            for conv in (self.times, self.plus)
        )
        a, b = torch.split(x, [times.shape[1], plus.shape[1]], dim=1)
        y = torch.cat([self.after_times(a * times), self.after_plus(b + plus)], dim=1)
        out: Tensor = self.out(y + x)
        return out


class SAMF(nn.Module):
    """Four fusions in series at the bottleneck, each with the token map of another depth of the ViT.

    The maps are fused in space, so they must cover the same ground as the features: tokens of the very crop that the
    CNN sees (`crop_tokens`), or cut out of the image's with the crop (`SpatialFeatures`), never those of a whole image
    beside a crop.

    Args:
        depth: number of token maps K; `blocks` of them, evenly spaced and ending with the last, are used.
        dim: channels D of a token, or of every depth's, where they differ: see `Depths`.
        channels: channel count of every encoder stage; the last one is fused.
        blocks: number of fusions in series.

    Source: FDEP (arXiv 2512.05511), overview figure. Kernel sizes, the four depths and the alignment of the grids are
    not published: they are ours, and so is the start at the identity.
    """

    def __init__(self, depth: int, dim: int | Sequence[int], channels: Sequence[int], blocks: int = 4) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.depths = Depths(dim)
        dim = self.depths.dim
        self.chosen = [max(round((i + 1) * depth / blocks) - 1, 0) for i in range(blocks)]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(blocks))
        self.blocks = nn.ModuleList(FusionBlock(self.channels[-1], dim) for _ in range(blocks))

    def forward(self, features: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
        """Encoder outputs `[(B, C_l, H_l, W_l)]` and tokens `(B, K, h, w, D)` -> fused encoder outputs.

        Tokens of a square grid may be a sequence, `(B, K, N, D)`.

        Raises:
            ValueError: if stages or tokens have other channels than this was built for, or N is no square number.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.channels:
            raise ValueError(f"`features` have {found} channels; this SAMF was built for {self.channels}.")
        x, grid = features[-1], as_grid(self.depths(tokens.to(next(self.parameters()).dtype)))
        for depth, norm, block in zip(self.chosen, self.norms, self.blocks, strict=True):
            x = block(x, norm(grid[:, depth]).permute(0, 3, 1, 2))
        return [*features[:-1], x]

    def gate_penalty(self) -> Tensor:
        """Zero: there are no gates."""
        return next(self.parameters()).new_zeros(())
