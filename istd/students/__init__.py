"""Student networks: bare CNNs, with no import of the teacher or of timm."""

from istd.students import acm, agpc, alcl, alcnet, dna, ggl, gsfa, isnet, mlcl, msda, msh, repisd, sctrans, sfdt, uiu
from istd.students.base import Output, Stage, Student, repeat_channels
from istd.students.published import load_published
from istd.students.registry import STUDENTS, StudentInfo, create_student, inference_form, stages_of

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
    "inference_form",
    "isnet",
    "load_published",
    "mlcl",
    "msda",
    "msh",
    "repeat_channels",
    "repisd",
    "sctrans",
    "sfdt",
    "stages_of",
    "uiu",
]
