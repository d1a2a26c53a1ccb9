"""Student networks: bare CNNs, with no import of the teacher or of timm."""

from istd.students import alcl, mlcl
from istd.students.blocks import Stage
from istd.students.registry import STUDENTS, Student, StudentInfo, create_student, stages_of

__all__ = ["STUDENTS", "Stage", "Student", "StudentInfo", "alcl", "create_student", "mlcl", "stages_of"]
