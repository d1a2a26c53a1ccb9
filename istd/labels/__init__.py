"""Pseudo-masks: how they start from points, evolve with a teacher, and when a hard sample is admitted."""

from istd.labels.canny import CannyContour
from istd.labels.crf import DenseCRF, with_crf
from istd.labels.diffusion import DiffusionMask, HeatDiffusion
from istd.labels.evolution import LabelEvolution
from istd.labels.hard_samples import HardSampleAdmission
from istd.labels.initial import INITIAL_MASKS, HalfMaximum, InitialMask, InitialRule, Square
from istd.labels.leak import AreaPrior
from istd.labels.learned import DiffusedMasks, LearnedLabels
from istd.labels.monte_carlo import MonteCarloClustering
from istd.labels.particles import ParticleDiffusion
from istd.labels.released_diffusion import ReleasedDiffusion
from istd.labels.schedule import UpdateSchedule, published_schedule, update_schedule
from istd.labels.store import PseudoMasks, point_maps

__all__ = [
    "INITIAL_MASKS",
    "AreaPrior",
    "CannyContour",
    "DenseCRF",
    "DiffusedMasks",
    "DiffusionMask",
    "HalfMaximum",
    "HardSampleAdmission",
    "HeatDiffusion",
    "InitialMask",
    "InitialRule",
    "LabelEvolution",
    "LearnedLabels",
    "MonteCarloClustering",
    "ParticleDiffusion",
    "PseudoMasks",
    "ReleasedDiffusion",
    "Square",
    "UpdateSchedule",
    "point_maps",
    "published_schedule",
    "update_schedule",
    "with_crf",
]
