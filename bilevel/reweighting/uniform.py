"""Uniform weights: the baseline that every strategy is measured against."""

import torch
from torch import Tensor, nn


class UniformWeights(nn.Module):
    """Weight one for every sample; no outer variables."""

    def forward(self, indices: Tensor, losses: Tensor | None = None) -> Tensor:
        """`(B,)` sample indices -> `(B,)` ones."""
        return torch.ones(indices.shape, device=indices.device)
