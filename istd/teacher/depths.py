"""Depths of one width from features whose depths differ: what every adapter does with its tokens first."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

DIM = 128  # the hidden width of SCAM


class Depths(nn.Module):
    """`(B, K, ..., D)` as they are, or `(B, 1, ..., sum D_k) -> (B, K, ..., D)`: depth k through a learned linear map.

    Levels of a pyramid are activations of any size, so each is brought to mean 0 and variance 1 over its channels
    first, as the final norm of a ViT does with its tokens.

    Args:
        dim: channels D of all depths, or those of each, D_k, where they differ.
    """

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.widths = () if isinstance(dim, int) else tuple(dim)
        self.dim = dim if isinstance(dim, int) else DIM
        self.norms = nn.ModuleList(nn.LayerNorm(w, elementwise_affine=False) for w in self.widths)
        self.maps = nn.ModuleList(nn.Linear(w, self.dim) for w in self.widths)

    def forward(self, tokens: Tensor) -> Tensor:
        """Split the depths and map each.

        Raises:
            ValueError: if the tokens have other channels than this was built for.
        """
        width = sum(self.widths) or self.dim
        if tokens.shape[-1] != width:
            raise ValueError(f"`tokens` have {tokens.shape[-1]} channels; this adapter was built for {width}.")
        if not self.widths:
            return tokens
        parts = torch.split(tokens[:, 0], list(self.widths), dim=-1)
        mapped = [layer(norm(p)) for layer, norm, p in zip(self.maps, self.norms, parts, strict=True)]
        return torch.stack(mapped, dim=1)


def as_sequence(tokens: Tensor) -> Tensor:
    """`(B, K, N, D)` from that or from `(B, K, h, w, D)`: what pooling over tokens asks for."""
    return tokens.flatten(2, 3) if tokens.ndim == 5 else tokens


def as_grid(tokens: Tensor) -> Tensor:
    """`(B, K, h, w, D)` from that or from `(B, K, N, D)` of a square grid: what fusion in space asks for.

    Raises:
        ValueError: if N is no square number.
    """
    if tokens.ndim == 5:
        return tokens
    side = math.isqrt(tokens.shape[2])
    if side * side != tokens.shape[2]:
        raise ValueError(f"`tokens` hold {tokens.shape[2]} places, which is no square grid; use square crops.")
    return tokens.reshape(*tokens.shape[:2], side, side, tokens.shape[3])
