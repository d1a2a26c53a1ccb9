"""Pseudo-masks: how they start from points, evolve with a teacher, and when a hard sample is admitted."""

from istd.labels.evolution import LabelEvolution
from istd.labels.hard_samples import HardSampleAdmission
from istd.labels.initial import INITIAL_MASKS, CannyContour, HalfMaximum, InitialMask, Square
from istd.labels.store import PseudoMasks

__all__ = [
    "INITIAL_MASKS",
    "CannyContour",
    "HalfMaximum",
    "HardSampleAdmission",
    "InitialMask",
    "LabelEvolution",
    "PseudoMasks",
    "Square",
]
