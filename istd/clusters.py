"""Which images share a sample weight: how many clusters a set can carry, and in which coordinates they are formed."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bilevel.reweighting import Clusters, ClusterWeights, SharedClusterWeights, Sharing, nested, smoothed

Matrix = NDArray[np.float64]

KEPT = 32  # descriptors that the second pass keeps
SHARINGS: dict[str, Callable[[], Sharing]] = {"nested": nested, "smoothed": smoothed}


def cluster_count(validation_images: int, largest: int = 256, per_cluster: int = 4) -> int:
    """Clusters for a set whose validation split has so many images.

    A cluster whose weight is learned from validation needs validation images of its own, so there are at most
    `validation_images / per_cluster` of them; the published 256 is the ceiling. (256 clusters on the 427 images of
    SIRST-v1 leave 89 % of the training images in clusters without any validation image.)
    """
    return int(np.clip(validation_images // per_cluster, 1, largest))


def cluster_weights(descriptors: Matrix, k: int, members: int, sharing: str = "none", seed: int = 0) -> ClusterWeights:
    """Weights for the first `members` rows of `descriptors` `(N, d)`; any further rows take part in the fit alone.

    Args:
        descriptors: finite numbers, one row per image.
        k: number of clusters; at most `members`.
        members: images that have a weight. The published release clusters test images as well; passing them as further
            rows reproduces that.
        sharing: "none", "nested" (clusters of clusters) or "smoothed" (see `bilevel.reweighting.sharing`).
        seed: of k-means.

    Raises:
        ValueError: for an unknown sharing.
    """
    if sharing not in ("none", *SHARINGS):
        raise ValueError(f"`sharing` must be one of none, {', '.join(SHARINGS)}, got {sharing!r}.")
    k = min(k, members)
    found = Clusters.fit(cluster_coordinates(descriptors, k, seed), k, seed, standardise=False)
    clusters = replace(found, labels=found.labels[:members])
    return ClusterWeights(clusters) if sharing == "none" else SharedClusterWeights(clusters, SHARINGS[sharing]())


def cluster_coordinates(descriptors: Matrix, k: int, seed: int = 0) -> Matrix:
    """`(N, p)` coordinates for k-means, in two passes as published.

    First pass: z-scores of the descriptors, PCA, k-means. Then the descriptors are ranked by how much they tell about
    those clusters, mutual information + 1e-6 F statistic, and PCA of the best 32 gives the coordinates. Near-constant
    descriptors, and those correlated to 0.95 with one before them, are dropped first.

    Source: semantic-priors (2026), released clustering script.
    """
    from sklearn.cluster import KMeans

    z = _distinct(descriptors)
    if z.shape[1] > KEPT:
        labels = KMeans(min(k, len(np.unique(z, axis=0))), n_init=1, random_state=seed).fit(_principal(z)).labels_
        z = z[:, np.sort(_relevance(z, labels, seed).argsort()[::-1][:KEPT])]
    return _principal(z)


def _distinct(x: Matrix) -> Matrix:
    """Z-scores of the columns that vary and repeat no earlier one."""
    x = x[:, x.var(axis=0) >= 1e-10]
    if not x.shape[1]:
        return np.zeros((len(x), 1))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    alike = np.abs(z.T @ z / len(z)) >= 0.95
    kept: list[int] = []
    for j in range(z.shape[1]):
        if not alike[j, kept].any():
            kept.append(j)
    return np.asarray(z[:, kept])


def _principal(z: Matrix) -> Matrix:
    """The components that explain 90 % of the variance, at most 20."""
    from sklearn.decomposition import PCA

    return np.asarray(PCA(0.9, svd_solver="full").fit(z).transform(z)[:, :20]) if z.var() else z


def _relevance(z: Matrix, labels: NDArray[np.int32], seed: int) -> NDArray[np.float64]:
    from sklearn.feature_selection import f_classif, mutual_info_classif

    if len(np.unique(labels)) in (1, len(labels)):
        return np.asarray(z.var(axis=0))  # one cluster, or one for each image: nothing to tell apart
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cluster of equal values makes F infinite
        f = np.nan_to_num(f_classif(z, labels)[0], posinf=1e6)
    return np.asarray(mutual_info_classif(z, labels, random_state=seed) + 1e-6 * f)
