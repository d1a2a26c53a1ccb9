"""Pseudo-masks: how they start from points, evolve with a teacher, and when a hard sample is admitted."""

from istd.labels.diffusion import DiffusionMask, HeatDiffusion
from istd.labels.evolution import LabelEvolution
from istd.labels.hard_samples import HardSampleAdmission
from istd.labels.initial import INITIAL_MASKS, CannyContour, HalfMaximum, InitialMask, Square
from istd.labels.monte_carlo import MonteCarloClustering
from istd.labels.store import PseudoMasks

__all__ = [
    "INITIAL_MASKS",
    "CannyContour",
    "DiffusionMask",
    "HalfMaximum",
    "HardSampleAdmission",
    "HeatDiffusion",
    "InitialMask",
    "LabelEvolution",
    "MonteCarloClustering",
    "PseudoMasks",
    "Square",
]
