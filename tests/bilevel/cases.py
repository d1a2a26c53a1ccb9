"""Oracle problems with closed-form hypergradients, in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel import BilevelProblem


@dataclass(frozen=True)
class Case:
    """A problem at its inner solution, with the exact hypergradient there."""

    name: str
    problem: BilevelProblem
    inner: Any
    outer: Any
    exact: Any
    largest_curvature: float


def _spd(n: int, condition: float, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)) @ q.T


def quadratic(n: int = 6, m: int = 3, condition: float = 10.0, seed: int = 0) -> Case:
    """f = w'Aw/2 - w'Ba, F = |w - c|^2/2 + a'a/2: w* = A^-1 B a, dF = a + B'A^-1 (w* - c)."""
    g = torch.Generator().manual_seed(seed)
    a_matrix = _spd(n, condition, g)
    b = torch.randn(n, m, generator=g, dtype=torch.float64)
    c = torch.randn(n, generator=g, dtype=torch.float64)
    a = torch.randn(m, generator=g, dtype=torch.float64)
    problem = BilevelProblem(
        lambda w, x, _: w @ a_matrix @ w / 2 - w @ b @ x, lambda w, x, _: ((w - c) ** 2).sum() / 2 + x @ x / 2
    )
    w = torch.linalg.solve(a_matrix, b @ a)
    exact = a + b.T @ torch.linalg.solve(a_matrix, w - c)
    return Case("quadratic", problem, w, a, exact, condition)


def ridge(n: int = 30, d: int = 5, seed: int = 1) -> Case:
    """Ridge with one penalty per feature, exp(a_j): w* = (X'X/n + D)^-1 X'y/n, F = |Zw - t|^2/(2m)."""
    g = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, 12))
    y, t = (torch.randn(k, generator=g, dtype=torch.float64) for k in (n, 12))
    a = 0.3 * torch.randn(d, generator=g, dtype=torch.float64) - 1
    problem = BilevelProblem(
        lambda w, p, _: ((x @ w["w"] - y) ** 2).mean() / 2 + (p["log"].exp() * w["w"] ** 2).sum() / 2,
        lambda w, p, _: ((z @ w["w"] - t) ** 2).mean() / 2,
    )
    hessian = x.T @ x / n + torch.diag(a.exp())
    w = torch.linalg.solve(hessian, x.T @ y / n)
    g_outer = z.T @ (z @ w - t) / 12
    exact = -(a.exp() * w) * torch.linalg.solve(hessian, g_outer)
    return Case("ridge", problem, {"w": w}, {"log": a}, {"log": exact}, float(torch.linalg.eigvalsh(hessian)[-1]))


def weighted_least_squares(n: int = 20, d: int = 4, seed: int = 2) -> Case:
    """Weights a_i on residuals: w* = (X'DX)^-1 X'Dy (D = diag a), dF/da_i = -r_i x_i' (X'DX)^-1 dF/dw."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = torch.randn(n, generator=g, dtype=torch.float64)
    c = torch.randn(d, generator=g, dtype=torch.float64)
    a = torch.rand(n, generator=g, dtype=torch.float64) + 0.5
    problem = BilevelProblem(
        lambda w, p, _: (p[0] * (x @ w[0] - y) ** 2).sum() / 2, lambda w, p, _: ((w[0] - c) ** 2).sum() / 2
    )
    hessian = x.T @ (a[:, None] * x)
    w = torch.linalg.solve(hessian, x.T @ (a * y))
    exact = -(x @ w - y) * (x @ torch.linalg.solve(hessian, w - c))
    return Case("weights", problem, (w,), (a,), (exact,), float(torch.linalg.eigvalsh(hessian)[-1]))


CASES = [quadratic(), ridge(), weighted_least_squares()]
