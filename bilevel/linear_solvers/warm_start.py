"""Start a solve where the last one ended."""

from dataclasses import dataclass, replace
from typing import TypedDict

from torch import Tensor

from bilevel.linear_solvers.base import MatVec, StartedSolver
from bilevel.results import SolveResult


class LastSolution(TypedDict):
    """State of `WarmStart`: the last solution that was finite, `(n,)` or `(problems, n)`; None before the first."""

    last: Tensor | None


@dataclass(frozen=True)
class WarmStart:
    """Solve H v = b from the last solution on.

    Between two outer steps H and b change little, so a few iterations a step follow the solution. With
    `Neumann(terms=1, step_size=s)` a call is v <- v + s (b - H v), which is the single-loop method SOBA.

    Attributes:
        solver: any solver of this package; its relative tolerance is taken with respect to b.

    Source: Dagreou et al. (SOBA, NeurIPS 2022); Ji, Yang and Liang (AID with warm start, ICML 2021).
    """

    solver: StartedSolver

    def init(self) -> LastSolution:
        """The state before the first call."""
        return {"last": None}

    def __call__(self, matvec: MatVec, b: Tensor, state: LastSolution | None = None) -> SolveResult:
        """Solve for `b` from the solution in `state`; from zero without one, and after a change of shape."""
        last = None if state is None else state["last"]
        known = last is not None and last.shape == b.shape
        found = self.solver(matvec, b, last) if known else self.solver(matvec, b)
        kept = found.value.detach() if bool(found.value.isfinite().all()) else last
        return replace(found, state=LastSolution(last=kept))
