"""Hard-sample admission: images whose start failed wait until the network's prediction agrees with their points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from istd.data.points import Points
from istd.regions import find_regions


@dataclass(frozen=True)
class HardSampleAdmission:
    """Accept a prediction as an image's first mask if it misses few points and raises few alarms.

    With n points, of which m lie in no predicted component (p > 0.5), and c components, of which k hold a point:
    accept if `m / n <= tolerance(t)` and `(c - k) / n <= alarms`. The tolerance rises linearly from `first` at the
    start of admission to 1 at its end. An accepted mask is the union of the components that hold a point, and of
    the points.

    Attributes:
        first: tolerance at the start.
        alarms: most false components per point. Published: 5, which admits nearly everything; the default is 1.

    Source: Yu et al. (PAL, 2025), reinforcement phase.
    """

    first: float = 0.2
    alarms: float = 1.0

    def tolerance(self, progress: float) -> float:
        """Share of points that may be missed, at `progress` in [0, 1] through the admission phase."""
        return self.first + (1 - self.first) * min(max(progress, 0.0), 1.0)

    def __call__(self, prediction: NDArray[np.float32], points: Points, progress: float) -> NDArray[np.float32] | None:
        """The new soft label `(H, W)`, or None if the image must wait."""
        n = len(points)
        if n == 0:
            return np.zeros(prediction.shape, dtype=np.float32)
        regions = find_regions(prediction > 0.5)
        hit = regions.labels[points[:, 0], points[:, 1]]
        covered = np.unique(hit[hit > 0])
        missed = int((hit == 0).sum())
        if missed / n > self.tolerance(progress) or (len(regions) - len(covered)) / n > self.alarms:
            return None
        mask = np.isin(regions.labels, covered)
        mask[points[:, 0], points[:, 1]] = True
        return mask.astype(np.float32)
