"""MINRES: minimal residuals for symmetric systems that may be indefinite, in constant memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import KrylovSolver, MatVec, finish, require_one_system, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class MINRES(KrylovSolver):
    """Minimise |(H + damping I) v - b| over the Krylov space of b for symmetric H, by a three-term recurrence.

    The Lanczos process gives orthonormal q_k and a tridiagonal T with H Q_k = Q_{k+1} T_k; Givens rotations keep the
    QR factors of T_k, and v_k = v_{k-1} + t_k d_k with d_k from the last two directions. Five vectors, whatever the
    number of steps. The same iterates as `GMRES` in exact arithmetic; GMRES keeps more digits over long runs. It solves
    at a saddle point of the inner loss as anywhere else: look at `minimum_curvature`, the smallest Ritz value.

    Settings: see `KrylovSolver`.

    Source: Paige and Saunders (1975).
    """

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Solve for `b` of shape `(n,)`, from `y0` on."""
        require_one_system(b, "MINRES")
        return scale_free(self._solve, matvec, b, y0, damping=self.damping)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        begin = b.norm()
        goal = self.goal(size, scale)[0]
        value = torch.zeros_like(b)
        if not bool(begin > goal):
            return finish(value, 0, b, goal)
        eps = torch.finfo(b.dtype).eps
        q_before, q = torch.zeros_like(b), b / begin
        d_before, d = torch.zeros_like(b), torch.zeros_like(b)
        one, zero = torch.ones_like(begin), torch.zeros_like(begin)
        cos_before, sin_before, cos, sin = one, zero, one, zero
        beta, rest = zero, begin
        largest = zero
        diagonals: list[Tensor] = []  # of T, and those beside its diagonal
        besides: list[Tensor] = []
        while len(diagonals) < self.max_iter and bool(rest.abs() > goal):
            w = matvec(q) + self.damping * q
            largest = torch.maximum(largest, w.norm())
            alpha = q.dot(w)
            w = w - alpha * q - beta * q_before
            beta_next = w.norm()
            diagonals.append(alpha)
            besides.append(beta_next)
            # The new column (beta, alpha, beta_next) of T, under the two rotations before it and its own.
            far, near = sin_before * beta, cos_before * beta
            above, diagonal = cos * near + sin * alpha, cos * alpha - sin * near
            pivot = torch.hypot(diagonal, beta_next)
            if not bool(pivot > 100 * eps * largest):
                break  # singular, and b is not in the range of H: the last iterate has the least residual
            cos_before, sin_before, cos, sin = cos, sin, diagonal / pivot, beta_next / pivot
            d_before, d = d, (q - above * d - far * d_before) / pivot
            value = value + cos * rest * d
            rest = -sin * rest
            if not bool(beta_next > 100 * eps * largest):
                break  # the Krylov space is exhausted
            q_before, q, beta = q, w / beta_next, beta_next
        # The true residual, by one product more: what the recurrence promises may be lost to rounding.
        residual = matvec(value) + self.damping * value - b
        curvature = _smallest_ritz_value(diagonals, besides[:-1])
        return finish(value, len(diagonals) + 1, residual, self.accepted(size, scale), curvature)


def _smallest_ritz_value(diagonals: list[Tensor], besides: list[Tensor]) -> Tensor:
    """The smallest eigenvalue of T, min v'Hv / v'v over the Krylov space; the q'Hq alone can hide a negative one."""
    matrix = torch.diag(torch.stack(diagonals))
    if besides:
        side = torch.stack(besides)
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values[0]
