"""The identity approximation of the inverse Hessian."""

from dataclasses import dataclass

from torch import Tensor

from bilevel.linear_solvers.base import MatVec, finish, inner, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class Identity:
    """Approximate H^-1 b by `scale * b`, without a product to find it (T1-T2).

    It is `Neumann(terms=1, step_size=scale)`: the derivative of one inner gradient step. A good direction where H is
    near `I / scale`, and biased elsewhere; the residual, for one product, says how much.

    Attributes:
        scale: an estimate of the inverse curvature, usually the inner step size.
        rtol: `converged` means |H v - b| <= rtol * |b|.

    Source: Luketina et al. (2016), T1-T2.
    """

    scale: float = 1.0
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"`scale` must be positive, got {self.scale}.")

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Scale `b` of shape `(n,)` or `(problems, n)`; from `y0` on, scale what it leaves of b."""
        return scale_free(self._solve, matvec, b, y0)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        value = self.scale * b
        product = matvec(value)
        curvature = inner(value, product) / inner(value, value)
        return finish(value, 1, b - product, self.rtol * size[..., 0], curvature[..., 0])
