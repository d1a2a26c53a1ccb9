"""Weights without an outer problem: from class counts, or from the losses of the batch. The baselines to beat.

Each is a module `weights(indices, losses) -> (B,)` of mean one over the batch (`ClassWeights`: over the data set), with
no outer variables and next to no cost. Those that look at losses detach them: a weight is never differentiated through
the loss it multiplies.
"""

import torch
from torch import Tensor, nn


class ClassWeights(nn.Module):
    """Weights by class size: inverse frequency, or the effective number of samples.

    With n_c samples of class c, `w = 1 / n_c` (beta = None), or `w = (1 - beta) / (1 - beta^n_c)`, which tends to
    inverse frequency for beta -> 1 and to uniform weights for beta = 0. Rescaled to mean one over the data set. Fails
    where the rare class is also the noisy one: it then multiplies wrong labels.

    Args:
        labels: `(N,)` integer class of every sample.
        beta: None for inverse frequency, else in [0, 1).

    Raises:
        ValueError: if `labels` is no vector of non-negative integers or `beta` lies outside [0, 1).

    Source: Cui et al. (CVPR 2019), equation 3, for the effective number.
    """

    table: Tensor

    def __init__(self, labels: Tensor, beta: float | None = None) -> None:
        super().__init__()
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.numel() == 0 or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(
                f"`labels` must be a vector of classes 0, 1, ..., got {labels.dtype} {tuple(labels.shape)}."
            )
        if beta is not None and not 0 <= beta < 1:
            raise ValueError(f"`beta` must be None or lie in [0, 1), got {beta}.")
        counts = torch.bincount(labels).double().clamp(min=1)
        rare = 1 / counts if beta is None else (1 - beta) / (1 - beta**counts)
        weights = rare[labels]
        self.register_buffer("table", (weights / weights.mean()).float())

    def forward(self, indices: Tensor, losses: Tensor | None = None) -> Tensor:
        """`(B,)` sample indices -> `(B,)` weights; of mean one over the data set, not over the batch."""
        return self.table[indices]


class FocalWeights(nn.Module):
    """`w_i = (1 - p_i)^gamma / mean_j (1 - p_j)^gamma`, p = exp(-loss): hard samples count more.

    The opposite of what wrong labels need: it stresses samples that the network cannot fit.

    Args:
        gamma: 0 is uniform; published 2.

    Source: Lin et al. (ICCV 2017), equation 4, as a normalised weight.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"`gamma` must not be negative, got {gamma}.")
        self.gamma = gamma

    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` indices and cross-entropies -> `(B,)` weights."""
        raw = (-torch.expm1(-losses.detach().clamp(min=0))).pow(self.gamma)
        return _mean_one(raw)


class SmallLossWeights(nn.Module):
    """Keep the share `1 - forget` of the batch with the smallest losses, equally weighted; drop the rest.

    Wrong labels are fitted late, so early in training large losses mark them. Needs the noise rate, and drops rare and
    hard samples alike.

    Args:
        forget: share that is dropped once warm, about the rate of wrong labels, in [0, 1).
        warmup: number of calls over which the dropped share grows from 0.

    Source: Han et al. (Co-teaching, NeurIPS 2018), the selection by one network.
    """

    calls: Tensor

    def __init__(self, forget: float, warmup: int = 100) -> None:
        super().__init__()
        if not 0 <= forget < 1:
            raise ValueError(f"`forget` must lie in [0, 1), got {forget}.")
        self.forget, self.warmup = forget, warmup
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` indices and losses -> `(B,)` weights; a call in training mode counts towards the warm-up."""
        share = self.forget * (self.calls.double() / max(self.warmup, 1)).clamp(max=1.0)
        if self.training:
            self.calls += 1
        rank = losses.detach().argsort().argsort()
        kept = rank < torch.ceil((1 - share) * len(losses)).clamp(min=1)
        return _mean_one(kept.to(losses.dtype))


class SelfPacedWeights(nn.Module):
    """`w_i = 1` if the loss is below lambda, else 0, rescaled to mean one; lambda grows by `growth` a call.

    lambda starts at the median loss of the first batch. Where no loss is below lambda, the smallest counts alone.

    Args:
        growth: factor per call, at least 1.

    Source: Kumar, Packer and Koller (NeurIPS 2010).
    """

    threshold: Tensor

    def __init__(self, growth: float = 1.005) -> None:
        super().__init__()
        if growth < 1:
            raise ValueError(f"`growth` must be at least 1, got {growth}.")
        self.growth = growth
        self.register_buffer("threshold", torch.tensor(float("nan")))

    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` indices and losses -> `(B,)` weights; a call in training mode moves lambda."""
        detached = losses.detach()
        threshold = torch.where(self.threshold.isnan(), detached.median().to(self.threshold), self.threshold)
        if self.training:
            self.threshold.copy_(threshold * self.growth)
        kept = (detached <= threshold.to(detached)) | (detached == detached.min())
        return _mean_one(kept.to(losses.dtype))


def _mean_one(raw: Tensor) -> Tensor:
    return raw / raw.mean().clamp(min=torch.finfo(raw.dtype).tiny)
