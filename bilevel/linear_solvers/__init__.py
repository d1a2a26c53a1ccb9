"""Linear solvers: `solver(matvec, b) -> SolveResult`."""

from bilevel.linear_solvers.base import LinearSolver, MatVec
from bilevel.linear_solvers.conjugate_gradient import ConjugateGradient
from bilevel.linear_solvers.dense import Dense
from bilevel.linear_solvers.neumann import Neumann

__all__ = ["ConjugateGradient", "Dense", "LinearSolver", "MatVec", "Neumann"]
