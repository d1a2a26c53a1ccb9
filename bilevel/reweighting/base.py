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


def bounded_weights(logits: Tensor, bound: float = BOUND, detach_mean: bool = False) -> Tensor:
    """Positive weights with mean one over the batch, from logits of any size.

    `r_i = bound * tanh((x_i - mean x) / bound)`, `w_i = exp(r_i) / mean_j exp(r_j)`. With bound = ln 2 a weight can
    exceed another of its batch at most fourfold. The normaliser is differentiated too: the slope of mean_i w_i l_i in
    r_i is w_i (l_i - mean_j w_j l_j) / B, negative for losses below the mean. With the normaliser detached, as in the
    released code of semantic-priors, it is w_i l_i / B, from which only the centring of x takes a mean: a sample that
    weighs much already is turned down even if its loss is the smaller one.

    Args:
        logits: `(B,)`, one per sample of the batch.
        bound: largest |r_i|; `math.inf` gives the softmax form `exp(x_i) / mean_j exp(x_j)`.
        detach_mean: take the normaliser, 1e-6 larger, as a constant: `w_i = exp(r_i) / (mean_j exp(r_j) + 1e-6)`, the
            released form.

    Returns:
        `(B,)` weights of mean one.

    Source: semantic-priors (2026), equation 7, with the bound of its released code.
    """
    centred = logits - logits.mean()
    if math.isfinite(bound):
        centred = bound * torch.tanh(centred / bound)
    weights = centred.exp()
    return weights / (weights.mean().detach() + 1e-6) if detach_mean else weights / weights.mean()
