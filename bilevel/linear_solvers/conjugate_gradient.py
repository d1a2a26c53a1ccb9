"""Conjugate gradients for symmetric positive definite systems."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import KrylovSolver, MatVec, finish, inner, scale_free
from bilevel.results import SolveResult

DOUBT = 10.0  # times eps, a generous bound on the rounding of one product and one update


@dataclass(frozen=True)
class ConjugateGradient(KrylovSolver):
    """Solve (H + damping I) v = b by conjugate gradients; exact in n steps for a positive definite n x n matrix.

    v_{k+1} = v_k + s p_k, r_{k+1} = r_k - s H p_k, s = r_k'r_k / p_k'H p_k,
    p_{k+1} = r_{k+1} + (|r_{k+1}|^2 / |r_k|^2) p_k.

    A direction with p'Hp <= 0 shows that H is not positive definite: iteration stops there, keeps the last iterate, and
    the result says `converged = False` with a negative or zero `minimum_curvature`. Systems side by side
    (`b` of shape `(problems, n)`) have their own step sizes and stop one by one.

    The recurrence's r goes on falling where b - H v, held up by rounding, no longer does. The two differ by at most a
    few eps |H| sum_k |s_k p_k| for every step (Greenbaum, 1997); where that is not far below r and the tolerance, one
    product more gives the true residual, which the result then reports and judges.

    Settings: see `KrylovSolver`.

    Source: Hestenes and Stiefel (1952); for hypergradients Pedregosa (2016).
    """

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Solve for `b` of shape `(n,)` or `(problems, n)`, from `y0` on."""
        one = b.ndim == 1 and b.device.type == "cpu"
        return scale_free(self._one_system if one else self._side_by_side, matvec, b, y0, damping=self.damping)

    def _damped(self, matvec: MatVec, v: Tensor) -> Tensor:
        return matvec(v) + self.damping * v if self.damping else matvec(v)

    def _side_by_side(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        residual, direction, value = b, b, torch.zeros_like(b)
        squared = inner(b, b)
        goal = self.goal(size, scale)
        minimum = torch.full_like(squared, float("inf"))
        walked, norm = torch.zeros_like(squared), torch.zeros_like(squared)
        active = squared.sqrt() > goal
        iterations = 0
        while iterations < self.max_iter and bool(active.any()):
            product = self._damped(matvec, direction)
            iterations += 1
            curvature, extent = inner(direction, product), inner(direction, direction)
            minimum = torch.where(active, torch.minimum(minimum, curvature / extent), minimum)
            norm = torch.where(active, torch.maximum(norm, (inner(product, product) / extent).sqrt()), norm)
            active = active & (curvature > 0)
            step = torch.where(active, squared / curvature, 0.0)
            walked = walked + step * extent.sqrt()
            value = torch.addcmul(value, step, direction)
            residual = torch.addcmul(residual, step, product, value=-1)
            previous, squared = squared, inner(residual, residual)
            direction = torch.where(active, torch.addcmul(residual, squared / previous, direction), direction)
            active = active & (squared.sqrt() > goal)
        gap = DOUBT * torch.finfo(b.dtype).eps * iterations * norm * walked
        if bool((gap > 0.1 * torch.maximum(squared.sqrt(), goal)).any()):
            residual = b - self._damped(matvec, value)
            iterations += 1
        minimum = torch.where(minimum.isinf(), torch.full_like(minimum, float("nan")), minimum)
        return finish(value, iterations, residual, self.accepted(size, scale), minimum[..., 0])

    def _one_system(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        """The same iteration with scalars on the host and vectors updated in place: half the operations."""
        value, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
        squared = float(b.dot(b))
        goal = float(self.goal(size, scale))
        minimum, walked, norm = math.inf, 0.0, 0.0
        iterations = 0
        while iterations < self.max_iter and squared**0.5 > goal:
            product = self._damped(matvec, direction)
            iterations += 1
            curvature, extent = float(direction.dot(product)), float(direction.dot(direction))
            minimum = min(minimum, curvature / extent)
            norm = max(norm, float(product.dot(product)) / extent)
            if not curvature > 0:
                break
            step = squared / curvature
            walked += step * extent**0.5
            value.add_(direction, alpha=step)
            residual.add_(product, alpha=-step)
            previous, squared = squared, float(residual.dot(residual))
            direction.mul_(squared / previous).add_(residual)
        if DOUBT * torch.finfo(b.dtype).eps * iterations * norm**0.5 * walked > 0.1 * max(squared**0.5, goal):
            residual = b - self._damped(matvec, value)
            iterations += 1
        seen = torch.tensor(minimum if math.isfinite(minimum) else math.nan, dtype=b.dtype)
        return finish(value, iterations, residual, self.accepted(size, scale), seen)
