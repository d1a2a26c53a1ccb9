"""Start a solve where the last one ended."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bilevel.linear_solvers.base import LinearSolver, MatVec, length
from bilevel.results import SolveResult


class WarmStart:
    """Solve H d = b - H v_0 from the last solution v_0 and return v_0 + d.

    Between two outer steps H and b change little, so a few iterations a step follow the solution. With
    `Neumann(terms=1, step_size=s)` a call is v <- v + s (b - H v), which is the single-loop method SOBA.

    Args:
        solver: any solver; its relative tolerance is taken with respect to b.

    Source: Dagreou et al. (SOBA, NeurIPS 2022); Ji, Yang and Liang (AID with warm start, ICML 2021).
    """

    def __init__(self, solver: LinearSolver) -> None:
        self.solver = solver
        self._last: Tensor | None = None

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b`, from zero at the first call and after a change of shape."""
        last = self._last
        if last is None or last.shape != b.shape:
            found = self.solver(matvec, b)
        else:
            last = last.to(b)
            damping = getattr(self.solver, "damping", 0.0)
            rest = b - matvec(last) - damping * last
            part = self._with_goal(b)(matvec, rest)
            rounding = 100 * torch.finfo(part.residual_norm.dtype).eps  # as a cold start is judged
            goal = max(getattr(self.solver, "rtol", 0.0), rounding) * length(b)
            found = replace(
                part,
                value=last + part.value,
                iterations=part.iterations + 1,
                converged=part.converged | (part.residual_norm <= goal),
            )
        if bool(found.value.isfinite().all()):
            self._last = found.value.detach().clone()
        return found

    def _with_goal(self, b: Tensor) -> LinearSolver:
        """The solver with the tolerance it would have for b itself, where it has an absolute one (and one system)."""
        solver: Any = self.solver
        if b.ndim > 1 or not (hasattr(solver, "atol") and hasattr(solver, "rtol")):
            return self.solver
        goal = max(solver.atol, solver.rtol * float(length(b)))
        made: LinearSolver = replace(solver, rtol=0.0, atol=goal)
        return made

    def state_dict(self) -> dict[str, Any]:
        """The last solution."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        last = state["last"]
        self._last = None if last is None else torch.as_tensor(last)
