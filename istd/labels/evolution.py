"""Label evolution: pseudo-masks follow the teacher's predictions, region by region.

For every region R of the current label (soft > 0.5) with centroid c, cut to whole pixels, let m be the largest
prediction p in the window of 33x33 pixels around c. Pixels of the window with a prediction above

    thr = Tb m + k (m - Tb m) min(|R| / L, cap),   Tb = k = 1/2,   L = 0.0015 H W,

form components, 8-connected; those that touch the 3x3 pixels at c are candidates. A candidate pixel becomes
`(label + q) / 2`, every other pixel decays by 0.97, and anchors are 1.

Two rules are published and both are here, equal to the released code to the last bit (`rule`, `stored`):

- PAL (Yu et al., 2025), and semantic-priors (2026): all regions at once, decay 0.97.
- LESPS (Ying et al., 2023): regions one after another, so that a candidate of two regions is averaged twice; a window's
  only component is a candidate wherever it lies; no decay.

Three things are mended, each with the published value one option away. Published, cap is infinite, so that thr exceeds
m once |R| > 2 L: large targets can never be confirmed and flicker; here cap = 1 (thr <= 3/4 m). Published, anchors are
all pixels whose label is 1 (the start mask, an admitted mask, and what the network was certain of), so that a wrong
start never leaves; here they are the points. Published, q is the prediction, so that a network that is right about a
target's shape but not yet confident (m well below 1) erases it; here `q = p / m`, and a region that is not detected
(m <= 0.5) stays as it is: silence says nothing about its shape.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.data.points import Points
from istd.regions import EIGHT_CONNECTED, find_regions
from istd.schema import OneOf, Range, check

SoftMask = NDArray[np.float32]

RULES = ("pal", "lesps")
STORED = ("float32", "uint8")
ANCHORS = ("points", "ones")


@dataclass(frozen=True)
class LabelEvolution:
    """The update rule (formula: module head).

    Attributes:
        threshold: Tb, the part of a region's maximum above which a pixel may belong to it.
        slope: k, how much the threshold rises with a region's size.
        size_limit: L as a share of the image's pixels.
        cap: largest |R| / L that raises a region's threshold; published infinity.
        half: half side in pixels of the window around a region's centroid.
        decay: factor on pixels that no candidate confirms; published 0.97 by PAL, 1 by LESPS.
        anchors: `"points"`, or `"ones"` as published: every pixel whose label is 1.
        relative: measure confidence against the region's maximum m; False is published.
        rule: `"pal"` or `"lesps"`.
        stored: `"float32"`, or `"uint8"` as published: labels are kept as 8-bit pictures, rounded by PAL and cut by
            LESPS, which makes a pixel of 254.5 / 255 or more an anchor.
    """

    threshold: Annotated[float, Range(0, 1)] = 0.5
    slope: Annotated[float, Range(0, 1)] = 0.5
    size_limit: Annotated[float, Range(0, 1, above=True)] = 0.0015
    cap: Annotated[float, Range(0, infinite=True)] = 1.0
    half: Annotated[int, Range(1)] = 16
    decay: Annotated[float, Range(0, 1)] = 0.97
    anchors: Annotated[str, OneOf(ANCHORS)] = "points"
    relative: bool = True
    rule: Annotated[str, OneOf(RULES)] = "pal"
    stored: Annotated[str, OneOf(STORED)] = "float32"

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, label: SoftMask, prediction: SoftMask, points: Points) -> SoftMask:
        """Update one image's label.

        Args:
            label: `(H, W)` soft label in [0, 1].
            prediction: `(H, W)` probabilities of the teacher.
            points: `(n, 2)` rows and columns of the annotated points.

        Returns:
            The new `(H, W)` soft label.
        """
        # The releases differ in precision too: LESPS computes in single, PAL in double precision.
        dtype: Any = np.float32 if self.rule == "lesps" else np.float64
        old = label.astype(dtype)
        if self.stored == "uint8":
            old = np.rint(255 * old) / dtype(255)
        confirmed = np.zeros(label.shape, dtype=np.int64)
        confidence = prediction.astype(np.float32)
        kept = np.zeros(label.shape, dtype=bool)
        regions = find_regions(old > 0.5)
        for i in range(len(regions)):
            row, col = regions.centroids[i].astype(int).tolist()
            rows = slice(max(row - self.half, 0), row + self.half + 1)
            cols = slice(max(col - self.half, 0), col + self.half + 1)
            window = prediction[rows, cols]
            peak = float(window.max())
            if self.relative and peak <= 0.5:
                kept |= regions.mask(i)
                continue
            size = float(regions.areas[i]) / (self.size_limit * label.size)
            found = self._candidates(window, size, row - rows.start, col - cols.start)
            confirmed[rows, cols] += found
            if self.relative:
                confidence[rows, cols][found] = window[found] / peak
        updated = old.copy()
        for times in range(int(confirmed.max()) if self.rule == "lesps" else 1):
            updated = np.where(confirmed > times, (updated + confidence) / 2, updated)
        updated = np.where(confirmed > 0, updated, dtype(self.decay) * old)
        updated[kept] = old[kept]
        if self.anchors == "ones":
            updated[old == 1] = 1
        else:
            updated[points[:, 0], points[:, 1]] = 1
        return self._as_stored(updated)

    def _candidates(self, window: SoftMask, size: float, row: int, col: int) -> NDArray[np.bool_]:
        """Which pixels of a window are candidates of the region of |R| / L = `size` centred on (row, col)."""
        peak = np.float32(window.max())
        base = peak * np.float32(self.threshold)
        threshold = base + np.float32(self.slope) * (peak - base) * np.float32(min(size, self.cap))
        components, n = ndimage.label(window > threshold, structure=EIGHT_CONNECTED)
        touching = np.unique(components[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2])
        if n == 1 and self.rule == "lesps":
            touching = np.array([1])
        return np.asarray(np.isin(components, touching[touching > 0]))

    def _as_stored(self, label: NDArray[Any]) -> SoftMask:
        if self.stored == "uint8":
            levels = np.floor(255 * label) if self.rule == "lesps" else np.rint(255 * label)
            return np.asarray(levels / 255, dtype=np.float32)
        return np.asarray(label, dtype=np.float32)
