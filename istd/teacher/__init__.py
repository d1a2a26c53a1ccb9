"""The teacher: a frozen vision foundation model speaking to the student through SCAM, during training only."""

from istd.teacher.features import cached_tokens, crop_tokens, image_tokens
from istd.teacher.frozen import FrozenVFM
from istd.teacher.model import Outputs, Teacher
from istd.teacher.samf import SAMF
from istd.teacher.scam import SCAM
from istd.teacher.spatial_features import SpatialFeatures
from istd.teacher.spatial_scam import SpatialSCAM
from istd.teacher.vfm import load_vfm, vfm_names
from istd.teacher.weights import VFMWeightsError

__all__ = [
    "SAMF",
    "SCAM",
    "FrozenVFM",
    "Outputs",
    "SpatialFeatures",
    "SpatialSCAM",
    "Teacher",
    "VFMWeightsError",
    "cached_tokens",
    "crop_tokens",
    "image_tokens",
    "load_vfm",
    "vfm_names",
]
