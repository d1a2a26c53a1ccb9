"""Target metrics over a data set: probability of detection Pd and false-alarm rate Fa."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from istd.regions import find_regions

MATCH_DISTANCE = 3.0  # pixels


@dataclass
class TargetScores:
    """Accumulates Pd and Fa over images.

    Each true region, in raster order, is detected by the first predicted region, in raster order and not used before,
    whose centroid lies less than 3 px away. `Pd = detected regions / true regions`;
    `Fa = pixels of predicted regions that detect nothing / all pixels` (usually quoted in 1e-6). Regions are
    8-connected. Larger Pd and smaller Fa are better.

    Source: the released code of LESPS (Ying et al., 2023), which BasicIRSTD, PAL and semantic-priors share. DNANet (Li
    et al., 2023), SCTransNet and MSHNet define the same Pd, but their released Fa differs: it removes matched regions
    by their *areas*, so that a false alarm as large as some matched region of its image is forgiven.
    """

    detected: int = 0
    targets: int = 0
    false_pixels: int = 0
    pixels: int = 0

    def update(self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Add one image: two `(H, W)` bool masks of one size."""
        found, wanted = find_regions(prediction), find_regions(truth)
        free = np.ones(len(found), dtype=bool)
        for centroid in wanted.centroids:
            near = np.linalg.norm(found.centroids - centroid, axis=1) < MATCH_DISTANCE
            hits = np.flatnonzero(free & near)
            if len(hits):
                free[hits[0]] = False
                self.detected += 1
        self.targets += len(wanted)
        self.false_pixels += int(found.areas[free].sum())
        self.pixels += truth.size

    def compute(self) -> dict[str, float]:
        """Return `{"Pd", "Fa"}`; Pd is 0 where there is no target at all."""
        return {"Pd": self.detected / max(self.targets, 1), "Fa": self.false_pixels / max(self.pixels, 1)}
