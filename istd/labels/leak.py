"""Start masks that know the size of each target: the published prior of diffuse-to-detect and MCLC, for comparison.

Both read a target's class and box from its true mask. That is more supervision than a point, and every table marks it.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from istd.data.dataset import Sample
from istd.data.points import Points
from istd.labels.initial import InitialMask, InitialRule, Mask, window_around
from istd.regions import find_regions

CLASSES = ((9, 5), (81, 11), (np.inf, 25))
"""Largest area in pixels of a point, a spot and an extended target, and the half side of their boxes."""

PADDING = 4  # px that the published crop adds to the box


@dataclass(frozen=True)
class AreaPrior:
    """A rule for start masks that sees, target by target, no more of the image than the published box.

    Attributes:
        rule: the rule; one with the attribute `takes_areas` gets the whole image, and the areas beside the sample.
    """

    rule: InitialRule

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image, whose true mask is read.

        Raises:
            ValueError: if it has none.
        """
        image, points, truth = sample.image, sample.points, true_mask(sample)
        areas, rule = true_areas(points, truth), cast(Any, self.rule)
        if getattr(rule, "takes_areas", False):
            return cast(InitialMask, rule(sample, areas))
        mask, reliable = np.zeros(image.shape, dtype=bool), np.zeros(len(points), dtype=bool)
        for i, ((row, col), area) in enumerate(zip(points.tolist(), areas, strict=True)):
            half = next(h for largest, h in CLASSES if area <= largest)
            rows, cols, r, c = window_around(image.shape, row, col, half + PADDING)
            found = self.rule(Sample(sample.name, np.ascontiguousarray(image[rows, cols]), np.array([[r, c]])))
            inside = window_around(found.mask.shape, r, c, half)[:2]
            kept = np.zeros_like(found.mask)
            kept[inside] = found.mask[inside]
            mask[rows, cols] |= kept
            reliable[i] = bool(found.reliable[0])
        return InitialMask(mask, reliable)


def true_areas(points: Points, truth: Mask) -> NDArray[np.float64]:
    """`(n,)` areas in pixels of the regions that points were made from: the one around a point, or the nearest."""
    regions, areas = find_regions(truth), np.zeros(len(points))
    if len(regions):
        for i, (row, col) in enumerate(points.tolist()):
            own = regions.labels[row, col] or 1 + np.hypot(*(regions.centroids - (row, col)).T).argmin()
            areas[i] = float(regions.areas[own - 1])
    return areas


def true_mask(sample: Sample) -> Mask:
    """The true mask of an image that must have one.

    Raises:
        ValueError: naming the image that has none.
    """
    truth = sample.truth()
    if truth is None:
        raise ValueError(f"This configuration trains on true masks, but image {sample.name!r} has none.")
    return truth
