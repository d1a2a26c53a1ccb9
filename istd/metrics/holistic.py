"""A multi-threshold score of pixels and targets, in the spirit of FDEP's HSE, whose formula is not public."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from istd.metrics.curve import THRESHOLDS
from istd.regions import find_regions

DISTANCES = (1.0, 2.0, 3.0, 4.0, 5.0)


class HolisticScore:
    """Accumulates `score = weight P + (1 - weight) R` over images. Ours, not HSE: every knob is explicit.

    Pixels: `P = mean over thresholds t of IoU(t)`, IoU over the data set of the masks `p > t`: confidence that is right
    at every threshold. Targets: `R = mean over t and distances d of F1(t, d)`, with one-to-one matches of regions whose
    centroids lie less than d pixels apart (the nearest pairs first): robustness of detections and their places.

    Args:
        thresholds: probabilities in (0, 1).
        distances: match distances in pixels.
        weight: of the pixel part.
    """

    def __init__(
        self, thresholds: Sequence[float] = THRESHOLDS, distances: Sequence[float] = DISTANCES, weight: float = 0.5
    ) -> None:
        if not thresholds or not all(0 < t < 1 for t in thresholds):
            raise ValueError(f"`thresholds` must lie in (0, 1), got {list(thresholds)}.")
        if not distances or not all(d > 0 for d in distances):
            raise ValueError(f"`distances` must be positive, got {list(distances)}.")
        if not 0 <= weight <= 1:
            raise ValueError(f"`weight` must lie in [0, 1], got {weight}.")
        self.thresholds, self.distances, self.weight = tuple(thresholds), tuple(distances), weight
        shape = len(self.thresholds)
        self._intersection, self._union = np.zeros(shape), np.zeros(shape)
        self._found = np.zeros(shape)
        self._matched = np.zeros((shape, len(self.distances)))
        self._targets = 0

    def update(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Add one image: `(H, W)` probabilities and bool mask."""
        if probabilities.shape != truth.shape:
            raise ValueError(f"`probabilities` are {probabilities.shape}, `truth` is {truth.shape}; sizes must agree.")
        wanted = find_regions(truth).centroids
        self._targets += len(wanted)
        for i, threshold in enumerate(self.thresholds):
            mask = probabilities > threshold
            self._intersection[i] += int((mask & truth).sum())
            self._union[i] += int((mask | truth).sum())
            found = find_regions(mask).centroids
            self._found[i] += len(found)
            gaps = _matched_gaps(found, wanted, max(self.distances))
            self._matched[i] += [(gaps < d).sum() for d in self.distances]

    def compute(self) -> dict[str, float]:
        """`{"score", "pixels", "targets"}`; 0 for what no image has shown."""
        pixels = float((self._intersection / np.maximum(self._union, 1)).mean())
        total = self._found[:, None] + self._targets
        targets = float((2 * self._matched / np.maximum(total, 1)).mean())
        return {"score": self.weight * pixels + (1 - self.weight) * targets, "pixels": pixels, "targets": targets}


def _matched_gaps(found: NDArray[np.float64], wanted: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Distances below `reach` of one-to-one pairs, the nearest first; those below d are the pairs for distance d.

    Pairs that lie `reach` or further apart come last and so never take a partner from a nearer pair: they are left out,
    and with them nearly all pairs of a mask of thousands of components.
    """
    from scipy.spatial import KDTree

    if not len(found) or not len(wanted):
        return np.zeros(0)
    near = KDTree(found).query_ball_point(wanted, reach)
    rows = np.concatenate([np.asarray(hits, dtype=np.int64) for hits in near])
    columns = np.repeat(np.arange(len(wanted)), [len(hits) for hits in near])
    gaps = np.linalg.norm(found[rows] - wanted[columns], axis=-1)
    free_rows, free_columns, out = np.ones(len(found), dtype=bool), np.ones(len(wanted), dtype=bool), []
    for place in np.lexsort((columns, rows, gaps)):
        i, j = rows[place], columns[place]
        if gaps[place] < reach and free_rows[i] and free_columns[j]:
            free_rows[i] = free_columns[j] = False
            out.append(gaps[place])
    return np.array(out)
