"""GMRES: minimal residuals for systems that are not positive definite, or not even symmetric."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.linear_solvers.base import KrylovSolver, MatVec, finish, require_one_system, scale_free
from bilevel.results import SolveResult


@dataclass(frozen=True)
class GMRES(KrylovSolver):
    """Minimise |(H + damping I) v - b| over the Krylov space of b; exact in n steps for any regular matrix.

    Arnoldi with two passes of Gram-Schmidt builds an orthonormal basis Q and H Q_k = Q_{k+1} T_k; v = Q_k y with y the
    least-squares solution of T_k y = |b| e_1. Memory grows by one vector per step. For a symmetric indefinite H the
    iterates are those of MINRES; unlike conjugate gradients it needs no positive curvature, but a saddle point of the
    inner loss stays a saddle point: look at `minimum_curvature`.

    Settings: see `KrylovSolver`.

    Source: Saad and Schultz (1986); Paige and Saunders (1975) for the symmetric case.
    """

    def __call__(self, matvec: MatVec, b: Tensor, y0: Tensor | None = None) -> SolveResult:
        """Solve for `b` of shape `(n,)`, from `y0` on."""
        require_one_system(b, "GMRES")
        return scale_free(self._solve, matvec, b, y0, damping=self.damping)

    def _solve(self, matvec: MatVec, b: Tensor, size: Tensor, scale: Tensor) -> SolveResult:
        begin = b.norm()
        goal = self.goal(size, scale)[0]
        if not bool(begin > goal):
            return finish(torch.zeros_like(b), 0, b, goal)
        steps = min(self.max_iter, b.numel())
        basis = torch.empty(steps + 1, b.numel(), dtype=b.dtype, device=b.device)
        basis[0] = b / begin
        projected = torch.zeros(steps + 1, steps, dtype=b.dtype, device=b.device)
        target = torch.zeros(steps + 1, dtype=b.dtype, device=b.device)
        target[0] = begin
        used, eps = 0, torch.finfo(b.dtype).eps
        for k in range(steps):
            w = matvec(basis[k]) + self.damping * basis[k]
            length = w.norm()
            q = basis[: k + 1]
            for _ in range(2):  # once loses orthogonality to rounding, twice is enough (Giraud et al., 2005)
                overlap = q @ w
                projected[: k + 1, k] += overlap
                w = w - overlap @ q
            projected[k + 1, k] = w.norm()
            used = k + 1
            y = torch.linalg.lstsq(projected[: used + 1, :used], target[: used + 1, None]).solution[:, 0]
            rest = (projected[: used + 1, :used] @ y - target[: used + 1]).norm()
            if bool(rest <= goal) or bool(projected[k + 1, k] <= 10 * eps * length):
                break
            basis[k + 1] = w / projected[k + 1, k]
        value = y @ basis[:used]
        square = projected[:used, :used]
        curvature = torch.linalg.eigvalsh((square + square.T) / 2)[0]
        residual = matvec(value) + self.damping * value - b
        # The true residual, by one product more: what the recurrence promises may be lost to rounding.
        return finish(value, used + 1, residual, self.accepted(size, scale), curvature)
