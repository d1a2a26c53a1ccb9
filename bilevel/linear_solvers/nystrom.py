"""Nystrom approximation: a low-rank Hessian from some of its columns, inverted by the Woodbury identity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import MatVec, finish, require_one_system, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class Nystrom:
    """Approximate (H + damping I)^-1 b from k random columns of H: k products, no iteration.

    With columns C = H[:, K] and their block W = H[K, K], H ~ C W^+ C', and by Woodbury
    `(damping I + C W^+ C')^-1 b = (b - C (damping W + C'C)^+ C'b) / damping`. For symmetric H of rank at most k with
    columns K in general position the approximation is exact.

    Attributes:
        rank: k, number of columns; all of them if there are fewer.
        damping: added to the diagonal; it must be positive, because the approximation is singular without it.
        seed: which columns are drawn.
        rtol: `converged` means |(H + damping I) v - b| <= rtol * |b|, checked by one product more.

    Source: Hataya and Yamada (AISTATS 2023).
    """

    rank: int = 10
    damping: float = 1e-2
    seed: int = 0
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}.")
        if not self.damping > 0:
            raise ValueError(f"`damping` must be positive, got {self.damping}.")

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Approximate the solution for `b` of shape `(n,)`; from `y0` on, by one refinement of it."""
        require_one_system(b, "Nystrom")
        return scale_free(self._solve, matvec, b, y0, damping=self.damping)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        n = b.numel()
        k = min(self.rank, n)
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[:k].to(b.device)
        unit = torch.zeros(k, n, dtype=b.dtype, device=b.device)
        unit[torch.arange(k, device=b.device), chosen] = 1
        columns = torch.stack([matvec(row) for row in unit], dim=1)
        block = columns[chosen]
        block = (block + block.T) / 2
        core = self.damping * block + columns.T @ columns
        inner = torch.linalg.pinv((core + core.T) / 2, hermitian=True) @ (columns.T @ b)
        value = (b - columns @ inner) / self.damping
        product = matvec(value) + self.damping * value
        curvature = torch.linalg.eigvalsh(block)[0]
        return finish(value, k + 1, product - b, self.rtol * size[0], curvature)
