"""Student networks: bare CNNs, with no import of the teacher or of timm. Every file of this folder is imported here."""

from bilevel.registry import import_folder
from istd.students.base import Output, Stage, Student
from istd.students.inference import inference_form
from istd.students.memory import in_fast_format, memory_format
from istd.students.published import load_published
from istd.students.registry import STUDENTS, StudentInfo, create_student, stages_of, start_weights

import_folder(__name__, __path__)

__all__ = [
    "STUDENTS",
    "Output",
    "Stage",
    "Student",
    "StudentInfo",
    "create_student",
    "in_fast_format",
    "inference_form",
    "load_published",
    "memory_format",
    "stages_of",
    "start_weights",
]
