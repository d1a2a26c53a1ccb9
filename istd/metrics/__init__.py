"""Metrics: pixel level (IoU, nIoU), target level (Pd, Fa), both over all thresholds, and by what makes images hard."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from istd.metrics.characteristics import Characteristics, evaluate_by_characteristic
from istd.metrics.curve import OperatingCurve
from istd.metrics.holistic import HolisticScore
from istd.metrics.pixel import PixelScores
from istd.metrics.target import TargetScores

__all__ = [
    "Characteristics",
    "HolisticScore",
    "OperatingCurve",
    "PixelScores",
    "TargetScores",
    "evaluate_by_characteristic",
    "evaluate_masks",
]


def evaluate_masks(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> dict[str, float]:
    """IoU, nIoU, Pd and Fa of `(prediction, truth)` pairs of `(H, W)` bool masks; sizes may differ between pairs."""
    pixel, target = PixelScores(), TargetScores()
    for prediction, truth in pairs:
        pixel.update(prediction, truth)
        target.update(prediction, truth)
    return pixel.compute() | target.compute()
