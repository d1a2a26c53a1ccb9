"""Which images share a learned weight: settings, and the module of weights that they describe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from bilevel.reweighting import ClusterWeights
from istd.data.dataset import Sample
from istd.schema import OneOf, Range, check
from istd.weights.clusters import SHARINGS, cluster_count, cluster_weights
from istd.weights.descriptors import describe_images

Images = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class ImageClusters:
    """Clusters of images that share a weight.

    Attributes:
        count: number of clusters (published: 256), or None to scale it with the validation split.
        descriptors: what clusters are formed on: image "statistics", or the mean token of the "vfm".
        transductive: fit clusters on the (unlabelled) test images as well, as the published release does.
        sharing: what clusters learn from each other: "none", "nested" (clusters of clusters share a logit) or
            "smoothed" (neighbours share).
        detach_mean: take the normaliser of the weights as a constant, as published.
    """

    count: Annotated[int | None, Range(1)] = None
    descriptors: Annotated[str, OneOf(("statistics", "vfm"))] = "statistics"
    transductive: bool = False
    sharing: Annotated[str, OneOf(("none", *SHARINGS))] = "none"
    detach_mean: bool = False

    def __post_init__(self) -> None:
        check(self)

    def weights(
        self,
        samples: Sequence[Sample],
        validation: int,
        test: Sequence[Sample],
        tokens: Callable[[Images], NDArray[np.float64]] | None,
        seed: int,
    ) -> ClusterWeights:
        """The module of weights.

        Args:
            samples: the images that have a weight.
            validation: how many of them are for validation.
            test: images that a transductive fit sees, too.
            tokens: descriptors of the images by a VFM, and of further ones; None for a method without one.
            seed: of k-means.

        Raises:
            ValueError: if descriptors of a VFM are asked for where there is none.
        """
        further = [s.image for s in test] if self.transductive else []
        if self.descriptors == "statistics":
            rows = describe_images([*(s.image for s in samples), *further])
        elif tokens is None:
            raise ValueError("`clusters.descriptors` is 'vfm', but this method has no VFM; use 'statistics'.")
        else:
            rows = tokens(further)
        k = self.count or cluster_count(validation)
        return cluster_weights(rows, k, len(samples), self.sharing, seed, self.detach_mean)
