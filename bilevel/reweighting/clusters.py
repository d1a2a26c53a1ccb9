"""Clusters of samples: k-means on features, so that samples that look alike share a weight."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from bilevel.reweighting.base import BOUND
from bilevel.reweighting.table import TableWeights


@dataclass(frozen=True, eq=False)
class Clusters:
    """A k-means partition of standardised features.

    Attributes:
        centres: `(k, d)` cluster centres in standardised coordinates.
        mean: `(d,)` feature means of the fitted samples.
        scale: `(d,)` feature standard deviations, 1 where a feature is constant.
        labels: `(N,)` cluster of each fitted sample.
    """

    centres: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    labels: NDArray[np.int64]

    @classmethod
    def fit(cls, features: ArrayLike | Tensor, k: int, seed: int = 0) -> "Clusters":
        """Fit k-means.

        Args:
            features: `(N, d)` finite numbers, one row per sample.
            k: number of clusters; at most the number of distinct rows is used.
            seed: seed of the initialisation; the same seed gives the same clusters.

        Raises:
            ValueError: if `features` is not a finite matrix or `k` lies outside 1..N.
        """
        x = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"`features` must be a matrix (samples, features), got shape {x.shape}.")
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise ValueError(f"`features` holds a value that is not finite, first in row {row}; drop or impute it.")
        if not 1 <= k <= len(x):
            raise ValueError(f"`k` must lie between 1 and the number of samples ({len(x)}), got {k}.")
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        z = (x - mean) / scale
        k = min(k, len(np.unique(z, axis=0)))
        fitted = KMeans(k, n_init=4, random_state=seed).fit(z)
        return cls(fitted.cluster_centers_, mean, scale, fitted.labels_.astype(np.int64))

    def assign(self, features: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Nearest centre of each row of `features` `(M, d)`."""
        x = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
        z = (x - self.mean) / self.scale
        distance = (z**2).sum(1)[:, None] - 2 * z @ self.centres.T + (self.centres**2).sum(1)
        return np.asarray(distance.argmin(axis=1), dtype=np.int64)

    def sizes(self) -> NDArray[np.int64]:
        """`(k,)` number of fitted samples in each cluster."""
        return np.bincount(self.labels, minlength=len(self.centres))


class ClusterWeights(TableWeights):
    """Per-cluster weights: the outer variables are one logit per k-means cluster of the samples' features.

    Args:
        clusters: a fitted partition; sample i of the data set has the weight of cluster `clusters.labels[i]`.
        bound: see `bounded_weights`.

    Source: dynamic collaborative learning of semantic-priors (2026), section 3.3.
    """

    def __init__(self, clusters: Clusters, bound: float = BOUND) -> None:
        super().__init__(torch.from_numpy(clusters.labels), bound)
        self.clusters = clusters

    @classmethod
    def fit(cls, features: ArrayLike | Tensor, k: int, seed: int = 0, bound: float = BOUND) -> "ClusterWeights":
        """Cluster `features` `(N, d)` into `k` groups and start from uniform weights."""
        return cls(Clusters.fit(features, k, seed), bound)
