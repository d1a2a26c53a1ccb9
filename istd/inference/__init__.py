"""Inference: a trained student and what it needs to see images; neither teacher nor methods."""

from istd.inference.export import load_student, save_student
from istd.inference.predict import StudentPredictor

__all__ = ["StudentPredictor", "load_student", "save_student"]
