"""Metrics over all thresholds: Pd against Fa, and the pixel ROC."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from istd.metrics.target import TargetScores

THRESHOLDS = tuple(round(float(t), 3) for t in np.linspace(0.05, 0.95, 19))


class OperatingCurve:
    """Accumulates, for every threshold t, what the mask `p > t` scores.

    Pd and Fa as in `TargetScores`; the pixel rates are `TPR = true positive pixels / true pixels` and
    `FPR = false positive pixels / background pixels`.

    Args:
        thresholds: probabilities in (0, 1), rising.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        if not thresholds or min(thresholds) <= 0 or max(thresholds) >= 1 or list(thresholds) != sorted(thresholds):
            raise ValueError(f"`thresholds` must rise inside (0, 1), got {list(thresholds)}.")
        self.thresholds = tuple(thresholds)
        self._targets = [TargetScores() for _ in thresholds]
        self._hits = np.zeros(len(thresholds), dtype=np.int64)
        self._false = np.zeros(len(thresholds), dtype=np.int64)
        self._positive = self._negative = 0

    def update(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Add one image: `(H, W)` probabilities and bool mask."""
        if probabilities.shape != truth.shape:
            raise ValueError(
                f"`probabilities` are {probabilities.shape} but `truth` is {truth.shape}; sizes must agree."
            )
        self._positive += int(truth.sum())
        self._negative += int((~truth).sum())
        for i, threshold in enumerate(self.thresholds):
            mask = probabilities > threshold
            self._targets[i].update(mask, truth)
            hits = int((mask & truth).sum())
            self._hits[i] += hits
            self._false[i] += int(mask.sum()) - hits

    def compute(self) -> list[dict[str, float]]:
        """One `{"threshold", "Pd", "Fa", "TPR", "FPR"}` per threshold."""
        return [
            {
                "threshold": threshold,
                **target.compute(),
                "TPR": float(hits / max(self._positive, 1)),
                "FPR": float(false / max(self._negative, 1)),
            }
            for threshold, target, hits, false in zip(
                self.thresholds, self._targets, self._hits, self._false, strict=True
            )
        ]
