"""Hard-sample admission: images whose start failed wait until the network's prediction agrees with their points."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.data.points import Points
from istd.regions import find_regions
from istd.schema import Range, check


@dataclass(frozen=True)
class HardSampleAdmission:
    """Accept a prediction as an image's first mask if it misses few points and raises few max_false_components.

    Predicted components are the 8-connected regions of {p > 0.5} with their holes filled (what lies in a hole is no
    component of its own); points that touch, corners included, count as one. With n points, of which m meet no
    component, and c components: accept if `m / n <= tolerance(t)` and `(c - (n - m)) / n <= max_false_components`. The
    tolerance rises linearly from `first` at the start of admission to 1 at its end. An accepted mask is the union of
    the components that meet a point, and of the points. An image without points is accepted with an empty mask.

    Attributes:
        first: share of points that may be missed at the start.
        max_false_components: most false components per point. Published: 5, which admits nearly everything; the
            default is 1.

    Source: Yu et al. (PAL, 2025), reinforcement phase, as released: contours of OpenCV, filled.
    """

    first: Annotated[float, Range(0, 1)] = 0.2
    max_false_components: Annotated[float, Range(0)] = 1.0

    def __post_init__(self) -> None:
        check(self)

    def tolerance(self, progress: float) -> float:
        """Share of points that may be missed, at `progress` in [0, 1] through the admission phase."""
        return self.first + (1 - self.first) * min(max(progress, 0.0), 1.0)

    def __call__(self, prediction: NDArray[np.float32], points: Points, progress: float) -> NDArray[np.float32] | None:
        """The new soft label `(H, W)`, or None if the image must wait."""
        at = np.zeros(prediction.shape, dtype=bool)
        at[points[:, 0], points[:, 1]] = True
        annotated = find_regions(at)
        n = len(annotated)
        if n == 0:
            return np.zeros(prediction.shape, dtype=np.float32)
        found = find_regions(ndimage.binary_fill_holes(prediction > 0.5))
        met = at & (found.labels > 0)
        covered = len(np.unique(annotated.labels[met]))
        if (n - covered) / n > self.tolerance(progress) or (len(found) - covered) / n > self.max_false_components:
            return None
        return (np.isin(found.labels, found.labels[met]) | at).astype(np.float32)
