"""Truncated Neumann series."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import MatVec, finish, inner, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class Neumann:
    """Approximate H^-1 b by `v = step_size * sum_{j=0}^{terms-1} (I - step_size H)^j b`.

    The sum converges to the solution as `terms` grows if 0 < step_size < 2 / lambda_max(H) and H is positive definite.
    With K terms it equals the hypergradient of K unrolled gradient steps of that size taken at the inner solution.

    Attributes:
        terms: number of terms K; K = 1 is the identity approximation (T1-T2, Luketina et al., 2016).
        step_size: scale of the series, the inner step size that it mimics.
        rtol: `converged` means |H v - b| <= rtol * |b|.

    Source: Lorraine, Vicol and Duvenaud (2020), equation 8.
    """

    terms: int = 20
    step_size: float = 0.1
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"`terms` must be at least 1, got {self.terms}.")
        if not self.step_size > 0:
            raise ValueError(f"`step_size` must be positive, got {self.step_size}.")

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Sum the series for `b` of shape `(n,)` or `(problems, n)`; with `y0` add that for what it leaves of b."""
        return scale_free(self._solve, matvec, b, y0)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        term = total = b
        first = inner(b, b)
        minimum = torch.full_like(first, float("inf"))
        negligible = torch.finfo(b.dtype).eps ** 2 * first  # below it a term is rounding and has no direction
        for _ in range(self.terms - 1):
            product = matvec(term)
            squared = inner(term, term)
            minimum = torch.where(squared > negligible, torch.minimum(minimum, inner(term, product) / squared), minimum)
            term = term - self.step_size * product
            total = total + term
        # The residual telescopes: b - H v = (I - step_size H)^K b, one product more than the series itself.
        residual = term - self.step_size * matvec(term)
        minimum = torch.where(minimum.isinf(), torch.full_like(minimum, float("nan")), minimum)
        goal = self.rtol * size[..., 0]
        return finish(self.step_size * total, self.terms, residual, goal, minimum[..., 0])
