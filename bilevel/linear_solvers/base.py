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
        """Solve for `b` of shape `(n,)`; some solvers take `(problems, n)`, independent systems side by side."""
        ...


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of every system, `(n,) -> (1,)` or `(problems, n) -> (problems, 1)`."""
    return (a * b).sum(-1, keepdim=True)


def require_one_system(b: Tensor, name: str) -> None:
    """Raise unless `b` is one right-hand side.

    Raises:
        ValueError: naming the solvers that take several.
    """
    if b.ndim != 1:
        raise ValueError(
            f"`{name}` solves one system at a time, got right-hand sides of shape {tuple(b.shape)}; batched problems "
            "need ConjugateGradient, Neumann, Identity or Dense."
        )


def check_iteration(max_iter: int, rtol: float, atol: float, damping: float) -> None:
    """Raise unless the settings of an iterative solver make sense."""
    if max_iter < 1:
        raise ValueError(f"`max_iter` must be at least 1, got {max_iter}.")
    if min(rtol, atol, damping) < 0:
        raise ValueError(f"`rtol`, `atol` and `damping` must not be negative, got {rtol}, {atol}, {damping}.")


def finish(
    value: Tensor, iterations: int, residual: Tensor, tolerance: Tensor, curvature: Tensor | None = None
) -> SolveResult:
    """Assemble a `SolveResult`; `curvature` is NaN where the method saw none."""
    norm = torch.linalg.vector_norm(residual, dim=-1)
    minimum = torch.full_like(norm, float("nan")) if curvature is None else curvature
    return SolveResult(value, iterations, norm, norm <= tolerance, minimum)
