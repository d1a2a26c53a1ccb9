"""Student networks: bare CNNs, with no import of the teacher or of timm."""

from istd.students import acm, alcl, alcnet, dna, ggl, mlcl, msh, repisd, sctrans, uiu
from istd.students.base import Output, Stage, Student, repeat_channels
from istd.students.registry import STUDENTS, StudentInfo, create_student, inference_form, stages_of

__all__ = [
    "STUDENTS",
    "Output",
    "Stage",
    "Student",
    "StudentInfo",
    "acm",
    "alcl",
    "alcnet",
    "create_student",
    "dna",
    "ggl",
    "inference_form",
    "mlcl",
    "msh",
    "repeat_channels",
    "repisd",
    "sctrans",
    "stages_of",
    "uiu",
]
