"""Check a hypergradient on one's own problem: against a reference method and against finite differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.hypergradients import HypergradientMethod, Unrolled, hypergradient
from bilevel.hypergradients.inner_steps import Point, as_leaves, run_plain
from bilevel.inner_optimizers import Transformation
from bilevel.problem import BilevelProblem, evaluate
from bilevel.tree import Tree, as_variables, map_leaves, norm, ravel, unravel


@dataclass(frozen=True)
class HypergradientCheck:
    """What `check_hypergradient` found.

    Attributes:
        cosine: of the angle between the method's value and the reference's.
        norm_ratio: |value| / |reference|.
        indirect_cosine: the same for the indirect parts alone, which a large direct part may hide.
        indirect_share: |indirect| / |direct| of the method.
        finite_difference_error: relative error of the reference along random directions, against central differences
            of the real map a -> F(w_T(a), a).
        inner_gradient_norm: |df/dw| where the method looked; far from zero, implicit methods are biased.
        residual_norm: |H v - dF/dw| that the method's linear solver left; NaN for methods without one.
        verdict: all of it in words.
    """

    cosine: float
    norm_ratio: float
    indirect_cosine: float
    indirect_share: float
    finite_difference_error: float
    inner_gradient_norm: float
    residual_norm: float
    verdict: str


def check_hypergradient(
    problem: BilevelProblem,
    inner: Tree,
    outer: Tree,
    inner_batches: Sequence[Any],
    outer_batch: Any,
    method: HypergradientMethod | str,
    *,
    optimizer: Transformation,
    steps: int = 1,
    directions: int = 3,
    step: float = 1e-4,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare a method with the exact unroll of `steps` inner steps, and that unroll with finite differences.

    Args:
        problem: the two losses.
        inner: the inner variables.
        outer: the outer variables.
        inner_batches: batches of the inner loss.
        outer_batch: batch of the outer loss.
        method: the method to check.
        optimizer: inner update rule of the reference.
        steps: inner steps of the reference.
        directions: random directions of the finite differences.
        step: half width of the central differences; 1e-4 suits float64, 1e-2 float32.
        seed: of the directions.

    Returns:
        Cosines, ratios, errors and a verdict in plain language.

    Example:
        >>> import torch, bilevel
        >>> f = BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
        >>> w, a = (torch.tensor(x, dtype=torch.float64) for x in (5.0, 2.0))
        >>> check = check_hypergradient(f, w, a, [None], None, "gauss_newton", optimizer=bilevel.sgd(0.5), steps=50)
        >>> round(check.cosine, 3), check.finite_difference_error < 1e-6
        (1.0, True)
    """
    exact = hypergradient(problem, inner, outer, inner_batches, outer_batch, Unrolled(optimizer, steps))
    found = hypergradient(problem, inner, outer, inner_batches, outer_batch, method)
    errors = []
    generator = torch.Generator().manual_seed(seed)
    reference = ravel(exact.value)
    for _ in range(directions):
        direction = torch.randn(reference.numel(), generator=generator, dtype=torch.float64).to(reference)
        direction = direction / direction.norm()
        moved = [
            _value(problem, inner, _moved(outer, sign * step * direction), inner_batches, outer_batch, optimizer, steps)
            for sign in (1.0, -1.0)
        ]
        difference = (moved[0] - moved[1]) / (2 * step)
        errors.append(float((reference.dot(direction) - difference).abs() / reference.norm().clamp(min=1e-300)))
    direct = float(norm(found.direct))
    check = {
        "cosine": _cosine(found.value, exact.value),
        "norm_ratio": float(norm(found.value) / norm(exact.value)),
        "indirect_cosine": _cosine(found.indirect, exact.indirect),
        "indirect_share": float(norm(found.indirect)) / direct if direct else float("inf"),
        "finite_difference_error": max(errors),
        "inner_gradient_norm": float(found.stats.get("inner_gradient_norm", float("nan"))),
        "residual_norm": float(found.stats.get("residual_norm", float("nan"))),
    }
    return HypergradientCheck(**check, verdict=_verdict(check, found.stats))


def _moved(outer: Tree, change: Tensor) -> Tree:
    return unravel(ravel(outer).detach() + change, outer)


def _value(
    problem: BilevelProblem,
    inner: Tree,
    outer: Tree,
    inner_batches: Sequence[Any],
    outer_batch: Any,
    optimizer: Transformation,
    steps: int,
) -> Tensor:
    """F after real inner steps at these outer variables."""
    start = as_leaves(Point(inner, optimizer.init(as_variables(inner))))
    end = run_plain(problem, optimizer, start, outer, list(inner_batches), range(steps))
    w = map_leaves(lambda x: x.detach(), end.inner)
    return evaluate(problem, "outer_loss", w, outer, outer_batch).detach().double()


def _cosine(a: Tree, b: Tree) -> float:
    x, y = ravel(a).double(), ravel(b).double()
    return float(x.dot(y) / (x.norm() * y.norm())) if bool(x.norm() > 0) and bool(y.norm() > 0) else float("nan")


def _verdict(check: dict[str, float], stats: dict[str, Any]) -> str:
    if not check["finite_difference_error"] < 1e-2:
        return (
            f"The reference itself disagrees with finite differences (relative error "
            f"{check['finite_difference_error']:.1e}): a loss is not a pure function of its arguments (dropout, a "
            "detached path, randomness), or `step` does not suit the precision."
        )
    text = f"The method points along the exact derivative to cosine {check['cosine']:.3f}"
    text += f", {check['norm_ratio']:.2f} times as long."
    if check["cosine"] > 0.9 and check["indirect_cosine"] < 0.5:
        text += (
            f" But its indirect part does not (cosine {check['indirect_cosine']:.2f}): the direct part, "
            f"{1 / max(check['indirect_share'], 1e-300):.0f} times larger, hides it."
        )
    elif check["cosine"] < 0.5:
        text += " Do not follow it: train the inner problem further, or choose another method."
    if not bool(stats.get("converged", True)):
        text += (
            f" Its linear system was not solved (residual {check['residual_norm']:.1e}): allow more iterations, or add "
            "damping."
        )
    if float(stats.get("minimum_curvature", 1.0)) <= 0:
        text += " The inner Hessian has negative curvature there: the inner variables are at no minimum."
    return text
