"""Student networks: bare CNNs, with no import of the teacher or of timm."""

from istd.students import (
    acm,
    agpc,
    alcl,
    alcnet,
    dna,
    ggl,
    gsfa,
    isnet,
    mlcl,
    msda,
    msh,
    repisd,
    sctrans,
    sfdt,
    uiu,
    unet,
)
from istd.students.base import Output, Stage, Student, repeat_channels
from istd.students.inference import inference_form
from istd.students.memory import in_fast_format, memory_format
from istd.students.published import load_published
from istd.students.registry import STUDENTS, StudentInfo, create_student, stages_of, start_weights

__all__ = [
    "STUDENTS",
    "Output",
    "Stage",
    "Student",
    "StudentInfo",
    "acm",
    "agpc",
    "alcl",
    "alcnet",
    "create_student",
    "dna",
    "ggl",
    "gsfa",
    "in_fast_format",
    "inference_form",
    "isnet",
    "load_published",
    "memory_format",
    "mlcl",
    "msda",
    "msh",
    "repeat_channels",
    "repisd",
    "sctrans",
    "sfdt",
    "stages_of",
    "start_weights",
    "uiu",
    "unet",
]
