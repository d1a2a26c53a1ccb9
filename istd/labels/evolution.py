"""Label evolution: pseudo-masks follow the teacher's predictions, region by region.

For every region R of the current label (soft > 0.5) with centroid c, let m be the largest prediction in the window of
33x33 pixels around c. Pixels of the window with a prediction above

    thr = Tb m + k (m - Tb m) min(|R| / L, cap),   Tb = k = 1/2,   L = 0.0015 H W,

form candidates; those whose component touches the 3x3 pixels at c become `(label + q) / 2`, every other pixel decays by
0.97, and anchors stay 1.

Source: the LESPS rule (Ying et al., 2023) with PAL's joint update and decay (Yu et al., 2025). Three things are mended,
each with the published value one option away. Published, cap is infinite, so that thr exceeds m once |R| > 2 L: large
targets can never be confirmed and flicker; here cap = 1 (thr <= 3/4 m). Published, anchors are all pixels of the start
mask, so that a wrong start never leaves; here they are the points. Published, q is the prediction, so that a network
that is right about a target's shape but not yet confident (m well below 1) erases it; here `q = prediction / m`, and a
region that is not detected (m <= 0.5) stays as it is: silence says nothing about its shape.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.data.points import Points
from istd.regions import EIGHT_CONNECTED, find_regions

SoftMask = NDArray[np.float32]


@dataclass(frozen=True)
class LabelEvolution:
    """The update rule (formula: module head).

    Attributes:
        threshold: Tb.
        slope: k.
        size_limit: L as a share of the image's pixels.
        cap: largest |R| / L; `math.inf` is published.
        half: half side of the window around a region's centroid.
        decay: factor on pixels that no candidate confirms.
        anchors: `"points"`, or `"start"` as published.
        relative: measure confidence against the region's maximum m; False is published.
    """

    threshold: float = 0.5
    slope: float = 0.5
    size_limit: float = 0.0015
    cap: float = 1.0
    half: int = 16
    decay: float = 0.97
    anchors: str = "points"
    relative: bool = True

    def __post_init__(self) -> None:
        if self.anchors not in ("points", "start"):
            raise ValueError(f"`anchors` must be 'points' or 'start', got {self.anchors!r}.")

    def __call__(self, label: SoftMask, prediction: SoftMask, points: Points, start: NDArray[np.bool_]) -> SoftMask:
        """Update one image's label.

        Args:
            label: `(H, W)` soft label in [0, 1].
            prediction: `(H, W)` probabilities of the teacher.
            points: `(n, 2)` rows and columns of the annotated points.
            start: `(H, W)` the mask that training started from.

        Returns:
            The new `(H, W)` soft label.
        """
        confirmed = np.zeros(label.shape, dtype=bool)
        confidence = prediction.copy()
        regions = find_regions(label > 0.5)
        limit = self.size_limit * label.size
        kept = np.zeros(label.shape, dtype=bool)
        for number, (centroid, area) in enumerate(zip(regions.centroids, regions.areas, strict=True), start=1):
            row, col = np.rint(centroid).astype(int)
            rows = slice(max(row - self.half, 0), row + self.half + 1)
            cols = slice(max(col - self.half, 0), col + self.half + 1)
            window = prediction[rows, cols]
            peak = float(window.max())
            if self.relative and peak <= 0.5:
                kept |= regions.labels == number
                continue
            base = self.threshold * peak
            threshold = base + self.slope * (peak - base) * min(area / limit, self.cap)
            components, _ = ndimage.label(window > threshold, structure=EIGHT_CONNECTED)
            r, c = row - rows.start, col - cols.start
            touching = np.unique(components[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2])
            found = np.isin(components, touching[touching > 0])
            confirmed[rows, cols] |= found
            if self.relative:
                confidence[rows, cols][found] = window[found] / peak
        updated = np.where(confirmed, (label + confidence) / 2, self.decay * label).astype(np.float32)
        updated[kept] = label[kept]
        if self.anchors == "start":
            updated[start] = 1.0
        else:
            updated[points[:, 0], points[:, 1]] = 1.0
        return updated
