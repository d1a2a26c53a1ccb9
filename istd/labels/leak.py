"""Start masks that are told the size of each target: the published prior of diffuse-to-detect and MCLC, for comparison.

Both read a target's class and box from its true mask. That is more supervision than a point, and every table marks it.
"""

from dataclasses import dataclass

import numpy as np

from istd.data.points import Points
from istd.labels.initial import Image, InitialMask, InitialRule, Mask, window_around
from istd.regions import find_regions

CLASSES = ((9, 5), (81, 11), (np.inf, 25))
"""Largest area in pixels of a point, a spot and an extended target, and the half side of their boxes."""

PADDING = 4  # px that the published crop adds to the box


@dataclass(frozen=True)
class AreaPrior:
    """A rule for start masks that sees, target by target, no more of the image than the published box.

    Attributes:
        rule: the rule.
    """

    rule: InitialRule

    def __call__(self, image: Image, points: Points, truth: Mask) -> InitialMask:
        """Draw the mask of one image `(H, W)` with its points `(n, 2)` and its true mask `(H, W)`."""
        mask, reliable = np.zeros(image.shape, dtype=bool), np.zeros(len(points), dtype=bool)
        regions = find_regions(truth)
        for i, (row, col) in enumerate(points.tolist()):
            area = 0.0
            if len(regions):  # the region that the point was made from: its own, or the nearest
                own = regions.labels[row, col] or 1 + np.hypot(*(regions.centroids - (row, col)).T).argmin()
                area = float(regions.areas[own - 1])
            half = next(h for largest, h in CLASSES if area <= largest)
            rows, cols, r, c = window_around(image.shape, row, col, half + PADDING)
            found = self.rule(np.ascontiguousarray(image[rows, cols]), np.array([[r, c]]))
            inside = window_around(found.mask.shape, r, c, half)[:2]
            kept = np.zeros_like(found.mask)
            kept[inside] = found.mask[inside]
            mask[rows, cols] |= kept
            reliable[i] = bool(found.reliable[0])
        return InitialMask(mask, reliable)
