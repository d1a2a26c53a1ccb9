"""The contract of a linear solver: a product with H in, a `SolveResult` out. It never sees a loss."""

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class KrylovSolver:
    """Settings that the Krylov methods share.

    Attributes:
        max_iter: most products with H; at least 1.
        rtol: stop when the residual is at most max(rtol * |b|, atol).
        atol: absolute tolerance.
        damping: added to the diagonal of H for the whole solve; the solution is that of the damped system.
    """

    max_iter: int = 20
    rtol: float = 1e-10
    atol: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.max_iter < 1:
            raise ValueError(f"`max_iter` must be at least 1, got {self.max_iter}.")
        if min(self.rtol, self.atol, self.damping) < 0:
            raise ValueError(
                f"`rtol`, `atol` and `damping` must not be negative, got {self.rtol}, {self.atol}, {self.damping}."
            )


def finish(
    value: Tensor, iterations: int, residual: Tensor, tolerance: Tensor, curvature: Tensor | None = None
) -> SolveResult:
    """Assemble a `SolveResult`; `curvature` is NaN where the method saw none."""
    norm = torch.linalg.vector_norm(residual, dim=-1)
    minimum = torch.full_like(norm, float("nan")) if curvature is None else curvature
    return SolveResult(value, iterations, norm, norm <= tolerance, minimum)
