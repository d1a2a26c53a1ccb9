"""The teacher: a frozen vision foundation model speaking to the student through SCAM, during training only."""

from istd.teacher.features import cached_tokens, crop_tokens, image_tokens
from istd.teacher.frozen import FrozenVFM
from istd.teacher.model import Outputs, Teacher
from istd.teacher.samf import SAMF
from istd.teacher.scam import SCAM
from istd.teacher.semantic_head import SemanticHead, bright_spots, clutter_weights, component_scores, vetoed
from istd.teacher.spatial_features import SpatialFeatures
from istd.teacher.spatial_scam import SpatialSCAM
from istd.teacher.vfm import load_vfm, vfm_names
from istd.teacher.vision import VFM, Vision
from istd.teacher.weights import VFMWeightsError

__all__ = [
    "SAMF",
    "SCAM",
    "VFM",
    "FrozenVFM",
    "Outputs",
    "SemanticHead",
    "SpatialFeatures",
    "SpatialSCAM",
    "Teacher",
    "VFMWeightsError",
    "Vision",
    "bright_spots",
    "cached_tokens",
    "clutter_weights",
    "component_scores",
    "crop_tokens",
    "image_tokens",
    "load_vfm",
    "vetoed",
    "vfm_names",
]
