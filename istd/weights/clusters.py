"""Which images share a sample weight: how many clusters a set can carry, and in which coordinates they are formed."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bilevel.reweighting import Clusters, ClusterWeights, SharedClusterWeights, Sharing, nested, smoothed

Matrix = NDArray[np.float64]

KEPT = 32  # descriptors that the second pass keeps
ALIKE = 0.95  # correlation from which on two descriptors say the same
SHARINGS: dict[str, Callable[[], Sharing]] = {"nested": nested, "smoothed": smoothed}


def cluster_count(validation_images: int, largest: int = 256, per_cluster: int = 4) -> int:
    """Clusters for a set whose validation split has so many images.

    A cluster whose weight is learned from validation needs validation images of its own, so there are at most
    `validation_images / per_cluster` of them; the published 256 is the ceiling. (256 clusters on the 427 images of
    SIRST-v1 leave 89 % of the training images in clusters without any validation image.)
    """
    return int(np.clip(validation_images // per_cluster, 1, largest))


def cluster_weights(
    descriptors: Matrix, k: int, members: int, sharing: str = "none", seed: int = 0, detach_mean: bool = False
) -> ClusterWeights:
    """Weights for the first `members` rows of `descriptors` `(N, d)`; any further rows take part in the fit alone.

    Args:
        descriptors: finite numbers, one row per image.
        k: number of clusters; at most `members`.
        members: images that have a weight. The published release clusters test images as well; passing them as further
            rows reproduces that.
        sharing: "none", "nested" (clusters of clusters) or "smoothed" (see `bilevel.reweighting.sharing`).
        seed: of k-means.
        detach_mean: take the weights' normaliser as a constant, as published (`bilevel.reweighting.bounded_weights`).

    Raises:
        ValueError: for an unknown sharing.
    """
    if sharing not in ("none", *SHARINGS):
        raise ValueError(f"`sharing` must be one of none, {', '.join(SHARINGS)}, got {sharing!r}.")
    k = min(k, members)
    found = Clusters.fit(cluster_coordinates(descriptors, k, seed), k, seed, standardise=False)
    clusters = replace(found, labels=found.labels[:members])
    if sharing == "none":
        return ClusterWeights(clusters, detach_mean=detach_mean)
    return SharedClusterWeights(clusters, SHARINGS[sharing](), detach_mean=detach_mean)


def cluster_coordinates(descriptors: Matrix, k: int, seed: int = 0) -> Matrix:
    """`(N, p)` coordinates for k-means, in two passes as published.

    First pass: distinct descriptors, their z-scores, PCA, k-means. Then the descriptors are ranked by how much they
    tell about those clusters, mutual information + 1e-6 F statistic, and distinctness, z-scores and PCA of the best 32
    give the coordinates. Distinct: near-constant descriptors are dropped, and, pair by pair from the most alike on, the
    one of smaller variance of two that correlate to 0.95. PCA keeps 90 % of the variance, in 2 to 20 components.

    Source: semantic-priors (2026), released clustering script (which has k = 256 and seed 1).
    """
    from sklearn.cluster import KMeans

    kept = distinct_columns(descriptors)
    if not len(kept):
        return np.zeros((len(descriptors), 1))
    z = _z_scores(descriptors[:, kept])
    coordinates = _principal(z)
    groups = KMeans(min(k, len(np.unique(coordinates, axis=0))), n_init=1, random_state=seed).fit(coordinates).labels_
    best = kept[np.argsort(-_relevance(z, groups, seed), kind="stable")[:KEPT]]
    return _principal(_z_scores(descriptors[:, best[distinct_columns(descriptors[:, best])]]))


def distinct_columns(x: Matrix) -> NDArray[np.int64]:
    """Indices of the columns of `x` `(N, d)` that vary and are not alike: see `cluster_coordinates`."""
    variance = x.var(axis=0)
    varying = np.flatnonzero(variance > 1e-10)
    if not len(varying):
        return varying
    z = _z_scores(x[:, varying])
    alike = np.abs(z.T @ z / len(z))
    first, second = np.triu_indices(len(varying), 1)
    order = np.argsort(-alike[first, second], kind="stable")
    kept = np.ones(len(varying), dtype=bool)
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if alike[i, j] < ALIKE:
            break
        if kept[i] and kept[j]:
            kept[j if variance[varying[i]] >= variance[varying[j]] else i] = False
    return np.asarray(varying[kept])


def _z_scores(x: Matrix) -> Matrix:
    return np.asarray((x - x.mean(axis=0)) / x.std(axis=0))


def _principal(z: Matrix) -> Matrix:
    """The components that explain 90 % of the variance, 2 to 20 of them where there are so many."""
    from sklearn.decomposition import PCA

    parts = PCA(min(z.shape), svd_solver="full").fit(z)
    wanted = int(np.searchsorted(np.cumsum(parts.explained_variance_ratio_), 0.9)) + 1
    return np.asarray(parts.transform(z)[:, : min(max(wanted, 2), 20)])


def _relevance(z: Matrix, groups: NDArray[np.int32], seed: int) -> NDArray[np.float64]:
    if len(np.unique(groups)) in (1, len(groups)):
        return np.asarray(z.var(axis=0))  # one cluster, or one for each image: nothing to tell apart
    from sklearn.feature_selection import f_classif, mutual_info_classif

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cluster of equal values makes F infinite
        f = np.nan_to_num(f_classif(z, groups)[0], nan=0.0, posinf=0.0, neginf=0.0)
    return np.asarray(mutual_info_classif(z, groups, random_state=seed) + 1e-6 * f)
