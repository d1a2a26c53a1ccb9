"""bilevel: trustworthy hypergradients and learned sample weights for pairs of PyTorch objectives."""

from bilevel.batched import batched
from bilevel.deprecation import moved_names
from bilevel.diagnostics import HypergradientCheck, check_hypergradient
from bilevel.events import Callback
from bilevel.hypergradients import (
    BOME,
    F2SA,
    MESO,
    SAMA,
    AggregatedUnrolled,
    CheckpointedUnrolled,
    EvolutionStrategies,
    FiniteDifference,
    FixedPoint,
    ForwardUnrolled,
    HypergradientMethod,
    HypergradientWarning,
    Implicit,
    NextStep,
    NotFiniteError,
    PessimisticUnrolled,
    RankOneGaussNewton,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
)
from bilevel.inner_optimizers import InnerOptimizer, adam, adamw, sgd
from bilevel.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    Dense,
    Identity,
    LinearSolver,
    Neumann,
    Nystrom,
    WarmStart,
)
from bilevel.modules import parameters_of, problem_from_modules
from bilevel.objectives import INNER_OBJECTIVES, OUTER_OBJECTIVES
from bilevel.problem import BilevelProblem, ComposedLoss
from bilevel.products import directional_derivative
from bilevel.results import Hypergradient, SolveResult
from bilevel.schedule import Schedule
from bilevel.torch_optimizers import from_torch
from bilevel.trainer import BilevelTrainer, TrainingDiverged

__version__ = "0.1.0"

__all__ = [
    "BilevelProblem",
    "ComposedLoss",
    "BilevelTrainer",
    "Callback",
    "batched",
    "directional_derivative",
    "hypergradient",
    "Hypergradient",
    "HypergradientMethod",
    "HypergradientWarning",
    "NotFiniteError",
    "Unrolled",
    "NextStep",
    "TruncatedUnrolled",
    "CheckpointedUnrolled",
    "RecomputedUnrolled",
    "ForwardUnrolled",
    "PessimisticUnrolled",
    "AggregatedUnrolled",
    "Implicit",
    "FixedPoint",
    "RankOneGaussNewton",
    "FiniteDifference",
    "SAMA",
    "F2SA",
    "BOME",
    "MESO",
    "EvolutionStrategies",
    "check_hypergradient",
    "HypergradientCheck",
    "ConjugateGradient",
    "MINRES",
    "GMRES",
    "Neumann",
    "Nystrom",
    "Dense",
    "Identity",
    "WarmStart",
    "LinearSolver",
    "SolveResult",
    "InnerOptimizer",
    "sgd",
    "adam",
    "adamw",
    "from_torch",
    "Schedule",
    "TrainingDiverged",
    "parameters_of",
    "problem_from_modules",
    "INNER_OBJECTIVES",
    "OUTER_OBJECTIVES",
]

__getattr__ = moved_names(__name__)
