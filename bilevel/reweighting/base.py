"""The contract of sample weights and their bounded, mean-one parametrisation."""

import math
from typing import Protocol

import torch
from torch import Tensor

BOUND = math.log(2.0)


class SampleWeights(Protocol):
    """Maps the identities of a batch's samples, or their losses, to weights with mean one over the batch."""

    def __call__(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` integer sample indices and `(B,)` losses -> `(B,)` weights."""
        ...


def bounded_weights(logits: Tensor, bound: float = BOUND) -> Tensor:
    """Positive weights with mean one over the batch, from logits of any size.

    `r_i = bound * tanh((x_i - mean x) / bound)`, `w_i = exp(r_i) / mean_j exp(r_j)`. With bound = ln 2 a weight can
    exceed another of its batch at most fourfold. The normaliser is differentiated too: detaching it, as the released
    code of semantic-priors does, changes the gradient's direction.

    Args:
        logits: `(B,)`, one per sample of the batch.
        bound: largest |r_i|; `math.inf` gives the softmax form `exp(x_i) / mean_j exp(x_j)`.

    Returns:
        `(B,)` weights of mean one.

    Source: semantic-priors (2026), equation 7, with the bound of its released code.
    """
    centred = logits - logits.mean()
    if math.isfinite(bound):
        centred = bound * torch.tanh(centred / bound)
    weights = centred.exp()
    return weights / weights.mean()
