"""The contract of a linear solver: a product with H in, a `SolveResult` out. It never sees a loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel.results import SolveResult

MatVec = Callable[[Tensor], Tensor]


class LinearSolver(Protocol):
    """Solves H v = b, given v -> H v, for symmetric H (`GMRES`: for any).

    The solvers of this package are also called with `y0`, where to start (`WarmStart` does). A solver that carries
    something from one call to the next has `init() -> state`, is called with `state`, and returns the new one as
    `SolveResult.state`.
    """

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b` of shape `(n,)`; some solvers take `(problems, n)`, independent systems side by side."""
        ...


class StartedSolver(Protocol):
    """A linear solver that takes a first guess."""

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Solve for `b`, starting at `y0` of the same shape; None is zero."""
        ...


def solve(solver: LinearSolver, matvec: MatVec, b: Tensor, state: Any) -> SolveResult:
    """Call a solver, with its state if there is one."""
    if state is None:
        return solver(matvec, b)
    carrying: Any = solver
    found: SolveResult = carrying(matvec, b, state=state)
    return found


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


def working_dtype(b: Tensor) -> torch.dtype:
    """What vectors are kept in: the dtype of `b`, or float32 for half precisions, whose sums overflow or lose all."""
    return b.dtype if b.dtype.itemsize >= 4 else torch.float32


def length(b: Tensor) -> Tensor:
    """|b| of every system, `(n,) -> ()` or `(problems, n) -> (problems,)`, without overflow or underflow of squares."""
    b = b.to(working_dtype(b))
    largest = torch.linalg.vector_norm(b, ord=float("inf"), dim=-1, keepdim=True)
    safe = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    found: Tensor = torch.linalg.vector_norm(b / safe, dim=-1) * safe[..., 0]
    return found


Solve = Callable[[MatVec, Tensor, Tensor, Tensor], SolveResult]


def scale_free(
    solve: Solve, matvec: MatVec, b: Tensor, y0: Tensor | None = None, *, damping: float = 0.0
) -> SolveResult:
    """Solve for r / s with r = b - (H + damping I) y0 and 1 <= |r| / s < 2; return y0 + s times the answer.

    So no size of b meets the limits of its dtype. Every method here is homogeneous in b: it gives c v for c b. Squares
    of b, which decide when to stop, would overflow in float32 at |b| = 1e20 and in float16 at 256, and vanish at 1e-24.
    s is a power of two, so nothing is rounded. Half precisions are solved in float32 with products in their own dtype,
    and a residual of 10 eps |b| is then as good as products allow.

    Args:
        solve: `solve(matvec, r / s, |b| / s, s)`, the last two of shape `(1,)` or `(problems, 1)`; tolerances are
            relative to |b|, wherever the solve starts.
        matvec: v -> H v in the dtype of b.
        b: right-hand side `(n,)`, or several `(problems, n)`.
        y0: where to start, like b; None is zero.
        damping: what `solve` adds to the diagonal of H.

    Raises:
        ValueError: if `y0` has another shape than b.
    """
    wide = working_dtype(b)

    def widened(v: Tensor) -> Tensor:
        return matvec(v.to(b.dtype)).to(wide)

    product = matvec if wide == b.dtype else widened
    rest = b.to(wide)
    if y0 is not None:
        if y0.shape != b.shape:
            raise ValueError(f"`y0` has shape {tuple(y0.shape)}, `b` {tuple(b.shape)}; both must agree.")
        y0 = y0.to(rest)
        rest = rest - product(y0) - damping * y0
    length_of_rest = length(rest)[..., None]
    # A power of two; NaN for a b that is not finite.
    scale = torch.where(length_of_rest == 0, 1.0, length_of_rest / (2 * torch.frexp(length_of_rest).mantissa))
    scaled = rest / scale
    size = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True) if y0 is None else length(b)[..., None] / scale
    found = solve(product, scaled, size, scale)
    value, residual, converged = found.value * scale, found.residual_norm * scale[..., 0], found.converged
    if y0 is not None:
        value = y0 + value
        found = replace(found, iterations=found.iterations + 1)
    if wide != b.dtype:
        converged = converged | (residual <= 10 * torch.finfo(b.dtype).eps * length(b))
    return replace(found, value=value.to(b.dtype), residual_norm=residual, converged=converged)


@dataclass(frozen=True)
class KrylovSolver:
    """Settings that the Krylov methods share.

    Attributes:
        max_iter: most products with H; at least 1 (one more may be spent on the true residual).
        rtol: stop when the residual is at most max(rtol * |b|, atol), or eps * |b|, where the dtype ends. `converged`
            allows the true residual |(H + damping I) v - b| what rounding leaves, 100 eps |b| (1.2e-5 in float32).
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

    def goal(self, size: Tensor, scale: Tensor) -> Tensor:
        """The residual at which to stop, `(1,)` or `(problems, 1)`; both arguments are those of `scale_free`."""
        return torch.maximum(max(self.rtol, torch.finfo(size.dtype).eps) * size, self.atol / scale)

    def accepted(self, size: Tensor, scale: Tensor) -> Tensor:
        """The true residual that counts as converged, `()` or `(problems,)`."""
        return torch.maximum(self.goal(size, scale), 100 * torch.finfo(size.dtype).eps * size)[..., 0]


def finish(
    value: Tensor, iterations: int, residual: Tensor, tolerance: Tensor, curvature: Tensor | None = None
) -> SolveResult:
    """Assemble a `SolveResult`; `curvature` is NaN where the method saw none."""
    norm = torch.linalg.vector_norm(residual, dim=-1)
    minimum = torch.full_like(norm, float("nan")) if curvature is None else curvature
    return SolveResult(value, iterations, norm, norm <= tolerance, minimum)
