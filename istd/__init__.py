"""istd: infrared small target detection from single points, with a frozen vision foundation model as a teacher.

Importing this package, and running a trained student, needs no timm and loads no foundation model.
"""

from istd.inference.export import load_student, save_student
from istd.inference.predict import StudentPredictor
from istd.students import create_student, load_published

__all__ = ["StudentPredictor", "create_student", "load_published", "load_student", "save_student"]
