"""Pseudo-masks: how they start from points, evolve with a teacher, and when a hard sample is admitted.

Every file of this folder is imported here, so a new rule for start masks is a new file.
"""

from bilevel.registry import import_folder
from istd.labels.canny import CannyContour
from istd.labels.crf import DenseCRF, with_crf
from istd.labels.diffusion import DiffusionMask, HeatDiffusion
from istd.labels.evolution import LabelEvolution
from istd.labels.hard_samples import HardSampleAdmission
from istd.labels.initial import INITIAL_MASKS, HalfMaximum, InitialMask, InitialRule, Square
from istd.labels.leak import AreaPrior
from istd.labels.learned import DiffusedLabels, LearnedLabels
from istd.labels.monte_carlo import MonteCarloClustering
from istd.labels.particles import ParticleDiffusion
from istd.labels.released_diffusion import ReleasedDiffusion
from istd.labels.schedule import UpdateSchedule, published_schedule, update_schedule
from istd.labels.start import StartMasks
from istd.labels.store import Labels, PseudoMasks, point_maps
from istd.labels.updates import LabelUpdates, Redrawing, UpdateTimes

import_folder(__name__, __path__)

__all__ = [
    "INITIAL_MASKS",
    "AreaPrior",
    "CannyContour",
    "DenseCRF",
    "DiffusedLabels",
    "DiffusionMask",
    "HalfMaximum",
    "HardSampleAdmission",
    "HeatDiffusion",
    "InitialMask",
    "InitialRule",
    "LabelEvolution",
    "LabelUpdates",
    "Labels",
    "LearnedLabels",
    "MonteCarloClustering",
    "ParticleDiffusion",
    "PseudoMasks",
    "Redrawing",
    "ReleasedDiffusion",
    "Square",
    "UpdateSchedule",
    "StartMasks",
    "UpdateTimes",
    "point_maps",
    "published_schedule",
    "update_schedule",
    "with_crf",
]
