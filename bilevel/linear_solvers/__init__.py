"""Linear solvers: `solver(matvec, b) -> SolveResult`."""

from bilevel.linear_solvers.base import LinearSolver, MatVec, solve
from bilevel.linear_solvers.conjugate_gradient import ConjugateGradient
from bilevel.linear_solvers.dense import Dense
from bilevel.linear_solvers.gmres import GMRES
from bilevel.linear_solvers.identity import Identity
from bilevel.linear_solvers.minres import MINRES
from bilevel.linear_solvers.neumann import Neumann
from bilevel.linear_solvers.nystrom import Nystrom
from bilevel.linear_solvers.warm_start import WarmStart

__all__ = [
    "GMRES",
    "MINRES",
    "ConjugateGradient",
    "Dense",
    "Identity",
    "LinearSolver",
    "MatVec",
    "Neumann",
    "Nystrom",
    "WarmStart",
    "solve",
]
