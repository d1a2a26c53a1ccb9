"""Conjugate gradients for symmetric positive definite systems."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import MatVec, finish
from bilevel.results import SolveResult


@dataclass(frozen=True)
class ConjugateGradient:
    """Solve (H + damping I) v = b by conjugate gradients; exact in n steps for a positive definite n x n matrix.

    v_{k+1} = v_k + s p_k, r_{k+1} = r_k - s H p_k, s = r_k'r_k / p_k'H p_k,
    p_{k+1} = r_{k+1} + (|r_{k+1}|^2 / |r_k|^2) p_k.

    A direction with p'Hp <= 0 shows that H is not positive definite: iteration stops there, keeps the last iterate, and
    the result says `converged = False` with a negative or zero `minimum_curvature`.

    Attributes:
        max_iter: most products with H; at least 1.
        rtol: stop when |r| <= max(rtol * |b|, atol).
        atol: absolute tolerance.
        damping: added to the diagonal of H for the whole solve; the solution is that of the damped system.

    Source: Hestenes and Stiefel (1952); for hypergradients Pedregosa (2016).
    """

    max_iter: int = 20
    rtol: float = 1e-10
    atol: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.max_iter < 1:
            raise ValueError(f"`max_iter` must be at least 1, got {self.max_iter}.")
        if self.rtol < 0 or self.atol < 0 or self.damping < 0:
            raise ValueError(
                f"`rtol`, `atol` and `damping` must not be negative, got {self.rtol}, {self.atol}, {self.damping}."
            )

    def __call__(self, matvec: MatVec, b: Tensor) -> SolveResult:
        """Solve for `b` of shape `(n,)`."""
        tolerance = torch.clamp(self.rtol * b.norm(), min=self.atol)
        value = torch.zeros_like(b)
        residual = b.clone()
        direction = residual
        squared = residual.dot(residual)
        minimum = torch.full_like(squared, float("inf"))
        iterations = 0
        while iterations < self.max_iter and bool(squared.sqrt() > tolerance):
            product = matvec(direction) + self.damping * direction
            iterations += 1
            curvature = direction.dot(product)
            minimum = torch.minimum(minimum, curvature / direction.dot(direction))
            if not bool(curvature > 0):
                break
            step = squared / curvature
            value = value + step * direction
            residual = residual - step * product
            previous, squared = squared, residual.dot(residual)
            direction = residual + (squared / previous) * direction
        nan = torch.full_like(minimum, float("nan"))
        return finish(value, iterations, residual, tolerance, torch.where(minimum.isinf(), nan, minimum))
