"""bilevel: trustworthy hypergradients and learned sample weights for pairs of PyTorch objectives."""

from bilevel.diagnostics import HypergradientCheck, check_hypergradient
from bilevel.hypergradients import (
    CheckpointedUnrolled,
    FiniteDifference,
    GaussNewton,
    HypergradientMethod,
    HypergradientWarning,
    Implicit,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
)
from bilevel.inner_optimizers import InnerOptimizer, adam, adamw, sgd
from bilevel.linear_solvers import GMRES, ConjugateGradient, Dense, Identity, LinearSolver, Neumann, Nystrom
from bilevel.modules import parameters_of, problem_from_modules
from bilevel.objectives import INNER_OBJECTIVES, OUTER_OBJECTIVES
from bilevel.problem import BilevelProblem
from bilevel.results import Hypergradient, SolveResult
from bilevel.schedule import Schedule
from bilevel.trainer import BilevelTrainer, TrainingDiverged

__version__ = "0.1.0"

__all__ = [
    "BilevelProblem",
    "BilevelTrainer",
    "hypergradient",
    "Hypergradient",
    "HypergradientMethod",
    "HypergradientWarning",
    "Unrolled",
    "TruncatedUnrolled",
    "CheckpointedUnrolled",
    "Implicit",
    "GaussNewton",
    "FiniteDifference",
    "check_hypergradient",
    "HypergradientCheck",
    "ConjugateGradient",
    "Neumann",
    "Dense",
    "Identity",
    "Nystrom",
    "GMRES",
    "LinearSolver",
    "SolveResult",
    "InnerOptimizer",
    "sgd",
    "adam",
    "adamw",
    "Schedule",
    "TrainingDiverged",
    "parameters_of",
    "problem_from_modules",
    "INNER_OBJECTIVES",
    "OUTER_OBJECTIVES",
]
