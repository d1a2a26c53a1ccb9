"""The contract of a linear solver: a product with H in, a `SolveResult` out. It never sees a loss."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from bilevel.results import SolveResult

MatVec = Callable[[Tensor], Tensor]


class LinearSolver(Protocol):
    """Solves H v = b for symmetric H, given v -> H v."""

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b` of shape `(n,)`."""
        ...


def finish(
    value: Tensor, iterations: int, residual: Tensor, tolerance: Tensor, curvature: Tensor | None = None
) -> SolveResult:
    """Assemble a `SolveResult`; `curvature` is NaN where the method saw none."""
    norm = residual.norm()
    minimum = torch.full_like(norm, float("nan")) if curvature is None else curvature
    return SolveResult(value, iterations, norm, norm <= tolerance, minimum)
