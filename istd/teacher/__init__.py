"""The teacher: a frozen vision foundation model speaking to the student through SCAM, during training only."""

from istd.teacher.features import cached_tokens, crop_tokens, image_tokens
from istd.teacher.model import Outputs, Teacher
from istd.teacher.samf import SAMF
from istd.teacher.scam import SCAM
from istd.teacher.vfm import FrozenVFM, VFMWeightsError, load_vfm, vfm_names

__all__ = [
    "SAMF",
    "SCAM",
    "FrozenVFM",
    "Outputs",
    "Teacher",
    "VFMWeightsError",
    "cached_tokens",
    "crop_tokens",
    "image_tokens",
    "load_vfm",
    "vfm_names",
]
