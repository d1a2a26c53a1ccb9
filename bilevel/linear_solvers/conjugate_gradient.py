"""Conjugate gradients for symmetric positive definite systems."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import KrylovSolver, MatVec, finish, inner
from bilevel.results import SolveResult


@dataclass(frozen=True)
class ConjugateGradient(KrylovSolver):
    """Solve (H + damping I) v = b by conjugate gradients; exact in n steps for a positive definite n x n matrix.

    v_{k+1} = v_k + s p_k, r_{k+1} = r_k - s H p_k, s = r_k'r_k / p_k'H p_k,
    p_{k+1} = r_{k+1} + (|r_{k+1}|^2 / |r_k|^2) p_k.

    A direction with p'Hp <= 0 shows that H is not positive definite: iteration stops there, keeps the last iterate, and
    the result says `converged = False` with a negative or zero `minimum_curvature`. Systems side by side
    (`b` of shape `(problems, n)`) have their own step sizes and stop one by one.

    Settings: see `KrylovSolver`.

    Source: Hestenes and Stiefel (1952); for hypergradients Pedregosa (2016).
    """

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b` of shape `(n,)` or `(problems, n)`."""
        if b.ndim == 1 and b.device.type == "cpu":
            return self._one_system(matvec, b)
        residual = b
        squared = inner(b, b)
        goal = torch.clamp(self.rtol * squared.sqrt(), min=self.atol)
        value = torch.zeros_like(b)
        direction = b
        minimum = torch.full_like(squared, float("inf"))
        active = squared.sqrt() > goal
        iterations = 0
        while iterations < self.max_iter and bool(active.any()):
            product = matvec(direction)
            if self.damping:
                product = product + self.damping * direction
            iterations += 1
            curvature = inner(direction, product)
            minimum = torch.where(active, torch.minimum(minimum, curvature / inner(direction, direction)), minimum)
            active = active & (curvature > 0)
            step = torch.where(active, squared / curvature, 0.0)
            value = torch.addcmul(value, step, direction)
            residual = torch.addcmul(residual, step, product, value=-1)
            previous, squared = squared, inner(residual, residual)
            direction = torch.where(active, torch.addcmul(residual, squared / previous, direction), direction)
            active = active & (squared.sqrt() > goal)
        minimum = torch.where(minimum.isinf(), torch.full_like(minimum, float("nan")), minimum)
        return finish(value, iterations, residual, goal[..., 0], minimum[..., 0])

    def _one_system(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """The same iteration with scalars on the host and vectors updated in place: half the operations."""
        value, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
        squared = float(b.dot(b))
        goal = max(self.rtol * squared**0.5, self.atol)
        minimum = math.inf
        iterations = 0
        while iterations < self.max_iter and squared**0.5 > goal:
            product = matvec(direction)
            if self.damping:
                product = product + self.damping * direction
            iterations += 1
            curvature = float(direction.dot(product))
            minimum = min(minimum, curvature / float(direction.dot(direction)))
            if not curvature > 0:
                break
            step = squared / curvature
            value.add_(direction, alpha=step)
            residual.add_(product, alpha=-step)
            previous, squared = squared, float(residual.dot(residual))
            direction.mul_(squared / previous).add_(residual)
        seen = torch.tensor(minimum if math.isfinite(minimum) else math.nan, dtype=b.dtype)
        return finish(value, iterations, residual, torch.tensor(goal, dtype=b.dtype), seen)
