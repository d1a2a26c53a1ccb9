"""Clusters of samples: k-means on features, so that samples that look alike share a weight."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bilevel.checkpoint import write_atomically
from bilevel.events import Callback
from bilevel.reweighting.base import BOUND
from bilevel.reweighting.features import as_matrix
from bilevel.reweighting.table import TableWeights

LARGE = 20_000  # samples from which on k-means runs on mini-batches
SAMPLE = 2_000  # samples that a silhouette is computed on: its cost is quadratic
CANDIDATES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FIELDS = ("centres", "mean", "scale", "labels")


@dataclass(frozen=True, eq=False)
class Clusters:
    """A k-means partition of standardised features; every cluster has at least one fitted sample.

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
    def fit(
        cls,
        features: ArrayLike | Tensor,
        k: int | None,
        seed: int = 0,
        min_size: int = 1,
        standardise: bool = True,
    ) -> "Clusters":
        """Fit k-means (on mini-batches for more than 20,000 samples).

        Args:
            features: `(N, d)` finite numbers, one row per sample.
            k: number of clusters; at most the number of distinct rows is used. None chooses it by `choose_k`.
            seed: seed of the initialisation; the same seed gives the same clusters.
            min_size: clusters with fewer members are dissolved into their neighbours: a weight that one sample has for
                itself is learned from that sample alone.
            standardise: scale every feature to mean 0 and deviation 1 first; False takes them as they are, for instance
                principal components, whose sizes mean something.

        Raises:
            ValueError: if `features` is not a finite matrix, or `k` or `min_size` lies outside 1..N.
        """
        x = as_matrix(features)
        for name, value in (("k", 1 if k is None else k), ("min_size", min_size)):
            if not 1 <= value <= len(x):
                raise ValueError(f"`{name}` must lie between 1 and the number of samples ({len(x)}), got {value}.")
        mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
        if standardise:
            mean, scale = x.mean(axis=0), x.std(axis=0)
            scale = np.where(scale > 1e-12, scale, 1.0)
        z = (x - mean) / scale
        k = choose_k(x, seed=seed) if k is None else k
        centres = _k_means(z, k, seed)
        labels = _nearest(z, centres)
        sizes = np.bincount(labels, minlength=len(centres))
        while sizes.min() < min_size:  # the smallest first: its members may lift its neighbours over the limit
            centres = np.delete(centres, sizes.argmin(), axis=0)
            labels = _nearest(z, centres)
            sizes = np.bincount(labels, minlength=len(centres))
        return cls(centres, mean, scale, labels)

    def assign(self, features: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Nearest centre of each row of `features` `(M, d)`, fitted or unseen.

        Raises:
            ValueError: if `features` is not a finite matrix of d columns.
        """
        x = as_matrix(features)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"`features` has {x.shape[1]} columns, but the clusters were fitted on {len(self.mean)}.")
        return _nearest((x - self.mean) / self.scale, self.centres)

    def sizes(self) -> NDArray[np.int64]:
        """`(k,)` number of fitted samples in each cluster."""
        return np.bincount(self.labels, minlength=len(self.centres))

    def save(self, path: Path | str) -> None:
        """Write to an HDF5 file, atomically."""
        import h5py

        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name in FIELDS:
                file.create_dataset(name, data=getattr(self, name))
        write_atomically(path, lambda out: out.write(buffer.getvalue()))

    @classmethod
    def load(cls, path: Path | str) -> "Clusters":
        """Read a file of `save`.

        Raises:
            ValueError: if the file holds no clusters.
        """
        import h5py

        with h5py.File(path, "r") as file:
            missing = [name for name in FIELDS if name not in file]
            if missing:
                raise ValueError(f"{path} holds no clusters: {', '.join(missing)} missing.")
            return cls(*(np.asarray(file[name]) for name in FIELDS))


def choose_k(
    features: ArrayLike | Tensor, candidates: tuple[int, ...] = CANDIDATES, seed: int = 0, sample: int = SAMPLE
) -> int:
    """The number of clusters with the largest mean silhouette (b - a) / max(a, b) on a sample of the data.

    a is a sample's mean distance to its own cluster, b that to the nearest other one. Candidates above half the number
    of sampled distinct rows are left out; 1 is returned where none is left.

    Source: Rousseeuw (1987).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    x = as_matrix(features)
    rng = np.random.default_rng(seed)
    x = x[rng.choice(len(x), min(sample, len(x)), replace=False)]
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(scale > 1e-12, scale, 1.0)
    distinct = len(np.unique(z, axis=0))
    scores = {
        k: float(silhouette_score(z, KMeans(k, n_init=2, random_state=seed).fit(z).labels_))
        for k in candidates
        if 2 <= k <= distinct // 2
    }
    return max(scores, key=scores.__getitem__) if scores else 1


def _k_means(z: NDArray[np.float64], k: int, seed: int) -> NDArray[np.float64]:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(z) > LARGE:
        fitted = MiniBatchKMeans(k, n_init=3, batch_size=4096, random_state=seed).fit(z)
    else:
        fitted = KMeans(min(k, len(np.unique(z, axis=0))), n_init=4, random_state=seed).fit(z)
    return np.asarray(fitted.cluster_centers_, dtype=np.float64)


def _nearest(z: NDArray[np.float64], centres: NDArray[np.float64], chunk: int = 8192) -> NDArray[np.int64]:
    """Index of the nearest centre of every row; in chunks, because the distances are a matrix (rows, centres)."""
    offset = (centres**2).sum(axis=1)
    parts = [(offset - 2 * z[i : i + chunk] @ centres.T).argmin(axis=1) for i in range(0, len(z), chunk)]
    return np.concatenate(parts).astype(np.int64)


class ClusterWeights(TableWeights):
    """Per-cluster weights: the outer variables are one logit per k-means cluster of the samples' features.

    Memory O(k) for the variables. Samples that look alike share a weight, so a few trusted samples per cluster are
    enough to learn it. Fails where right and wrong labels look alike: noise that is independent of the features is
    spread over all clusters, and no weight of a cluster can separate it.

    Args:
        clusters: a fitted partition; sample i of the data set has the weight of cluster `clusters.labels[i]`.
        bound: see `bounded_weights`.
        detach_mean: see `bounded_weights`.

    Source: dynamic collaborative learning of semantic-priors (2026), section 3.3.
    """

    def __init__(self, clusters: Clusters, bound: float = BOUND, detach_mean: bool = False) -> None:
        super().__init__(torch.from_numpy(clusters.labels), bound, detach_mean)
        self.clusters = clusters

    @classmethod
    def fit(
        cls, features: ArrayLike | Tensor, k: int | None, seed: int = 0, bound: float = BOUND, min_size: int = 1
    ) -> "ClusterWeights":
        """Cluster `features` `(N, d)` into `k` groups (None: by silhouette) and start from uniform weights."""
        return cls(Clusters.fit(features, k, seed, min_size), bound)

    @torch.no_grad()
    def recluster(self, features: ArrayLike | Tensor, seed: int = 0) -> None:
        """Cluster the same samples anew on other features, as many clusters at most; weights are carried over.

        Every sample keeps its logit, and the logit of a new cluster is the mean over its members.

        Args:
            features: `(N, d)`, one row per sample of the first fit.
            seed: seed of the initialisation.

        Raises:
            ValueError: if the number of rows differs from that of the first fit.
        """
        clusters = self._refit(features, seed)
        self.logits.copy_(self._carried_over(clusters))
        self._regroup(clusters)

    def _refit(self, features: ArrayLike | Tensor, seed: int) -> Clusters:
        x = as_matrix(features)
        if len(x) != len(self.groups):
            raise ValueError(f"`features` has {len(x)} rows, but these are weights of {len(self.groups)} samples.")
        return Clusters.fit(x, len(self.table()), seed)

    def _carried_over(self, clusters: Clusters) -> Tensor:
        """`(groups,)` logits of new clusters: the mean of their members' present ones."""
        table, labels = self.table().detach(), torch.from_numpy(clusters.labels).to(self.groups)
        total = torch.zeros_like(table).index_add_(0, labels, table[self.groups])
        return total / torch.bincount(labels, minlength=len(table)).clamp(min=1)

    def _regroup(self, clusters: Clusters) -> None:
        self.clusters = clusters
        self.groups.copy_(torch.from_numpy(clusters.labels))

    def get_extra_state(self) -> dict[str, Tensor]:
        """The partition, for `state_dict`: the centres are needed to place unseen samples."""
        return {name: torch.from_numpy(np.ascontiguousarray(getattr(self.clusters, name))) for name in FIELDS}

    def set_extra_state(self, state: Any) -> None:
        """Restore the partition of a `state_dict`."""
        self.clusters = Clusters(*(state[name].cpu().numpy() for name in FIELDS))


class Reclustering(Callback):
    """Callback of `BilevelTrainer`: cluster anew every few epochs, for instance on the network's own features.

    Args:
        weights: the weights to regroup; logits are carried over, and the outer optimizer's moments for them forgotten,
            because they belong to groups that no longer exist.
        features: called at the end of an epoch; returns `(N, d)`.
        every: period in epochs.
        seed: seed of the initialisation.
    """

    def __init__(self, weights: ClusterWeights, features: Any, every: int, seed: int = 0) -> None:
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        self.weights, self.features, self.every, self.seed = weights, features, every, seed

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Regroup where due."""
        if epoch % self.every == 0:
            self.weights.recluster(self.features(), self.seed)
            if trainer.outer_optimizer is not None:
                trainer.outer_optimizer.state.pop(self.weights.logits, None)
