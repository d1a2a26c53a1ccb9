"""MINRES: minimal residuals for symmetric systems that may be indefinite, in constant memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import KrylovSolver, MatVec, finish, require_one_system
from bilevel.results import SolveResult


@dataclass(frozen=True)
class MINRES(KrylovSolver):
    """Minimise |(H + damping I) v - b| over the Krylov space of b for symmetric H, by a three-term recurrence.

    The Lanczos process gives orthonormal q_k and a tridiagonal T with H Q_k = Q_{k+1} T_k; Givens rotations keep the
    QR factors of T_k, and v_k = v_{k-1} + t_k d_k with d_k from the last two directions. Five vectors, whatever the
    number of steps. The same iterates as `GMRES` in exact arithmetic; GMRES keeps more digits over long runs.

    Settings: see `KrylovSolver`.

    Source: Paige and Saunders (1975).
    """

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b` of shape `(n,)`."""
        require_one_system(b, "MINRES")
        size = b.norm()
        tolerance = torch.clamp(self.rtol * size, min=self.atol)
        value = torch.zeros_like(b)
        if not bool(size > tolerance):
            return finish(value, 0, b, tolerance)
        eps = torch.finfo(b.dtype).eps
        q_before, q = torch.zeros_like(b), b / size
        d_before, d = torch.zeros_like(b), torch.zeros_like(b)
        one, zero = torch.ones_like(size), torch.zeros_like(size)
        cos_before, sin_before, cos, sin = one, zero, one, zero
        beta, rest = zero, size
        minimum = torch.full_like(size, float("inf"))
        largest = zero
        iterations = 0
        while iterations < self.max_iter and bool(rest.abs() > tolerance):
            w = matvec(q) + self.damping * q
            iterations += 1
            largest = torch.maximum(largest, w.norm())
            alpha = q.dot(w)
            minimum = torch.minimum(minimum, alpha)
            w = w - alpha * q - beta * q_before
            beta_next = w.norm()
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
        goal = torch.clamp(tolerance, min=100 * eps * size)
        return finish(value, iterations + 1, residual, goal, minimum)
