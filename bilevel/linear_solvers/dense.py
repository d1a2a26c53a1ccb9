"""Direct solve with the dense matrix, for small problems and as the oracle of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import MatVec, finish, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class Dense:
    """Build H column by column (n products, n^2 numbers) and solve by LU, or by least squares if H is singular.

    Attributes:
        rtol: `converged` means |H v - b| <= rtol * |b|.
        max_size: refuse systems with more unknowns than this.
    """

    rtol: float = 1e-6
    max_size: int = 5000

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Solve for `b` of shape `(n,)` or `(problems, n)`; a direct solve has no use for `y0`.

        Raises:
            ValueError: if n exceeds `max_size`.
        """
        n = b.shape[-1]
        if n > self.max_size:
            raise ValueError(
                f"`Dense` was asked for {n} unknowns, more than max_size={self.max_size}; use ConjugateGradient or "
                "Neumann, which need no matrix."
            )
        return scale_free(self._solve, matvec, b)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        n = b.shape[-1]
        identity = torch.eye(n, dtype=b.dtype, device=b.device)
        matrix = torch.stack([matvec(row.expand_as(b)) for row in identity], dim=-1)
        value, info = torch.linalg.solve_ex(matrix, b[..., None])
        if bool((info != 0).any()) or not bool(value.isfinite().all()):
            value = torch.linalg.lstsq(
                matrix, b[..., None], driver="gelsd" if b.device.type == "cpu" else None
            ).solution
        curvature = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[..., 0]
        residual = (matrix @ value)[..., 0] - b
        return finish(value[..., 0], n, residual, self.rtol * size[..., 0], curvature)
