"""Cluster weights that share what they learn: between neighbouring clusters, or through clusters of clusters."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bilevel.reweighting.base import BOUND
from bilevel.reweighting.clusters import Clusters, ClusterWeights

Sharing = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""`share(centres (k, d)) -> (k, m)`: how the logits of k clusters mix from m variables."""


def nested(parents: int | None = None, seed: int = 0) -> Sharing:
    """Clusters of clusters: `logit_c = x_c + y_{parent(c)}`, so m = k + parents.

    A cluster that no trusted sample lies in still moves with its parent.

    Args:
        parents: number of clusters that k-means makes of the centres; None takes the rounded root of k.
        seed: of that k-means.
    """
    if parents is not None and parents < 1:
        raise ValueError(f"`parents` must be at least 1, got {parents}.")

    def share(centres: NDArray[np.float64]) -> NDArray[np.float64]:
        k = len(centres)
        above = Clusters.fit(centres, min(parents or max(round(math.sqrt(k)), 1), k), seed)
        return np.hstack([np.eye(k), np.eye(len(above.centres))[above.labels]])

    return share


def smoothed(width: float = 1.0) -> Sharing:
    """Neighbours share: `logit_c = sum_j S_cj x_j`, `S_cj = exp(-d_cj^2 / (2 s^2))`, rows scaled to sum one, m = k.

    d_cj is the distance of two centres and s = `width` times the median distance of a centre to its nearest neighbour.

    Raises:
        ValueError: if `width` is not positive.
    """
    if not width > 0:
        raise ValueError(f"`width` must be positive, got {width}.")

    def share(centres: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        apart = np.where(np.eye(len(gap), dtype=bool), np.inf, gap).min(axis=1)
        scale = width * float(np.median(apart)) if len(gap) > 1 else 1.0
        kernel = np.exp(-0.5 * (gap / max(scale, 1e-12)) ** 2)
        return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))

    return share


class SharedClusterWeights(ClusterWeights):
    """Cluster weights whose logits are a fixed linear mix `M x` of the outer variables x.

    With few trusted samples most clusters hold none of them, and a logit of their own would never leave zero. Memory
    O(k m) for M, which is computed once from the centres. Fails where neighbours in feature space deserve opposite
    weights.

    Args:
        clusters: a fitted partition.
        share: `nested()` or `smoothed()`, or any function from centres to M.
        bound: see `bounded_weights`.
        detach_mean: see `bounded_weights`.

    Raises:
        ValueError: if `share` does not give a matrix with one row per cluster.
    """

    mixing: Tensor

    def __init__(self, clusters: Clusters, share: Sharing, bound: float = BOUND, detach_mean: bool = False) -> None:
        super().__init__(clusters, bound, detach_mean)
        self._share = share
        self.register_buffer("mixing", self._mix(clusters))
        self.logits = torch.nn.Parameter(torch.zeros(self.mixing.shape[1]))

    @classmethod
    def fit(  # type: ignore[override]  # one more choice to make
        cls,
        features: ArrayLike | Tensor,
        k: int | None,
        share: Sharing,
        seed: int = 0,
        bound: float = BOUND,
        min_size: int = 1,
    ) -> "SharedClusterWeights":
        """Cluster `features` `(N, d)` into `k` groups (None: by silhouette) and start from uniform weights."""
        return cls(Clusters.fit(features, k, seed, min_size), share, bound)

    def table(self) -> Tensor:
        """`(k,)` logits of the clusters."""
        return self.mixing @ self.logits

    @torch.no_grad()
    def recluster(self, features: ArrayLike | Tensor, seed: int = 0) -> None:
        """Cluster the same samples anew; the mix that fits the carried-over logits best (least squares) replaces x.

        The number of variables must stay what it was, which it does unless `features` has fewer distinct rows.
        """
        clusters = self._refit(features, seed)
        mixing = self._mix(clusters).to(self.mixing)
        if mixing.shape != self.mixing.shape:
            raise ValueError(
                f"`features` give {mixing.shape[0]} clusters and {mixing.shape[1]} variables, before they were "
                f"{tuple(self.mixing.shape)}; cluster on as many distinct rows."
            )
        wanted = self._carried_over(clusters).double()
        found = torch.linalg.lstsq(mixing.double().cpu(), wanted[:, None].cpu(), driver="gelsd").solution[:, 0]
        self.logits.copy_(found)
        self.mixing.copy_(mixing)
        self._regroup(clusters)

    def _mix(self, clusters: Clusters) -> Tensor:
        mixing = np.asarray(self._share(clusters.centres))
        if mixing.ndim != 2 or len(mixing) != len(clusters.centres):
            raise ValueError(
                f"`share` must give a matrix with one row per cluster ({len(clusters.centres)}), got {mixing.shape}."
            )
        return torch.from_numpy(mixing).float()
