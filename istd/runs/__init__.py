"""Runs: what lies on disk and what is compared."""

from istd.runs.folder import RunFolder
from istd.runs.metrics import Metrics
from istd.runs.run import load_run, run

__all__ = ["Metrics", "RunFolder", "load_run", "run"]
