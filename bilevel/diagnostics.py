"""Check a hypergradient on one's own problem: against a reference method and against finite differences."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optree
import torch

from bilevel.hypergradients import HypergradientMethod, HypergradientWarning, Unrolled, hypergradient
from bilevel.hypergradients.inner_steps import Start, run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.repetition import RandomState, device_of
from bilevel.inner_optimizers import OptimizerLike
from bilevel.problem import BilevelProblem
from bilevel.tree import Tree, add, detach, leaves, map_leaves, norm, ravel, rebuild

TOLERANCE = 1e-2  # relative: above the truncation of the differences, far below a wrong derivative
BLOCKS = 8  # at most so many parts of the outer tree have directions of their own


@dataclass(frozen=True)
class HypergradientCheck:
    """What `check_hypergradient` found.

    Attributes:
        cosine: of the angle between the method's value and the reference's; NaN if one of them is zero.
        norm_ratio: |value| / |reference|; NaN if both are zero.
        indirect_cosine: the same for the indirect parts alone, which a large direct part may hide.
        indirect_share: |indirect| / |direct| of the method.
        finite_difference_error: largest relative error of the reference's directional derivatives, against central
            differences of the real map a -> F(w_T(a), a); NaN if anything in it was not finite.
        worst_direction: the direction of that error.
        inner_gradient_norm: |df/dw| where the method looked; far from zero, implicit methods are biased.
        residual_norm: |H v - dF/dw| that the method's linear solver left; NaN for methods without one.
        verdict: all of it in words.
    """

    cosine: float
    norm_ratio: float
    indirect_cosine: float
    indirect_share: float
    finite_difference_error: float
    worst_direction: str
    inner_gradient_norm: float
    residual_norm: float
    verdict: str = ""


def check_hypergradient(
    problem: BilevelProblem,
    inner: Tree,
    outer: Tree,
    inner_batches: Sequence[Any],
    outer_batch: Any,
    method: HypergradientMethod | str,
    *,
    optimizer: OptimizerLike,
    steps: int = 1,
    start: Start | None = None,
    state: Any = None,
    method_state: Any = None,
    directions: int = 3,
    step: float | None = None,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare a method with the exact unroll of `steps` inner steps, and that unroll with finite differences.

    The differences are taken along the reference itself, where a wrong length or sign shows at any number of variables,
    and along random signs on every leaf of the outer tree (on eight groups of leaves if there are more), where missing
    parts show. Each is judged beside the directional derivative itself, not beside |reference|, which is larger by the
    root of the number of variables. Every evaluation draws the same random numbers from torch's generators, which end
    up as they were.

    Args:
        problem: the two losses.
        inner: the inner variables.
        outer: the outer variables.
        inner_batches: batches of the inner loss.
        outer_batch: batch of the outer loss.
        method: the method to check.
        optimizer: inner update rule of the reference, or a function `outer -> rule`.
        steps: inner steps of the reference.
        start: `start(inner, outer) -> inner`, where the reference begins; None begins at `inner` (see `Unrolled`).
        state: optimizer state the reference begins with; None starts afresh.
        method_state: what the method carries from its last call, see `hypergradient`; None begins anew.
        directions: random directions on every leaf or group.
        step: half width of the differences, relative to each leaf's root mean square (to 1 where that is zero). None
            takes eps^(1/4) of the coarsest dtype, 1.2e-4 in float64 and 1.9e-2 in float32: truncation, O(step^2), and
            rounding, O(eps / step), are then below 1e-3.
        seed: of the directions.

    Returns:
        Cosines, ratios, errors and a verdict in plain language.

    Example:
        >>> import torch, bilevel
        >>> f = BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
        >>> w, a = (torch.tensor(x, dtype=torch.float64) for x in (5.0, 2.0))
        >>> rule = bilevel.sgd(0.5)
        >>> check = check_hypergradient(f, w, a, [None], None, "rank_one_gauss_newton", optimizer=rule, steps=50)
        >>> round(check.cosine, 3), check.finite_difference_error < 1e-6
        (1.0, True)
    """
    if directions < 1:
        raise ValueError(f"`directions` must be at least 1, got {directions}.")
    random, batches, outer = RandomState.capture(device_of(inner)), list(inner_batches), detach(outer)
    at = Instance(problem, inner, outer, batches, outer_batch)
    reference = Unrolled(optimizer, steps, start=start, state=state)
    with random.replayed(), _quietly():
        exact = hypergradient(problem, inner, outer, batches, outer_batch, reference)
    with random.replayed(), _quietly():
        found = hypergradient(problem, inner, outer, batches, outer_batch, method, state=method_state)

    def value(a: Tree) -> float:
        """F after real inner steps at these outer variables."""
        with random.replayed():
            point = starting_point(optimizer, inner, a, start, state)
            end = run_plain(at, optimizer, point, range(steps), a)
            return float(at.outer_loss(detach(end.inner), a).detach())

    eps = max(torch.finfo(x.dtype).eps for x in leaves((inner, outer)))
    width = eps**0.25 if step is None else step
    errors = {}
    for name, direction in _directions(outer, exact.value, directions, seed):
        ahead, behind = (value(add(outer, map_leaves(lambda d, s=s: s * width * d, direction))) for s in (1.0, -1.0))
        difference = (ahead - behind) / (2 * width)
        rounding = 8 * eps * max(abs(ahead), abs(behind)) / width
        errors[name] = _relative_error(difference, exact.value, direction, rounding)
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    direct, length = float(norm(found.direct)), float(norm(exact.value))
    check = HypergradientCheck(
        cosine=_cosine(found.value, exact.value),
        norm_ratio=_ratio(float(norm(found.value)), length),
        indirect_cosine=_cosine(found.indirect, exact.indirect),
        indirect_share=float(norm(found.indirect)) / direct if direct else float("inf"),
        finite_difference_error=errors[worst],
        worst_direction=worst,
        inner_gradient_norm=float(found.stats.get("inner_gradient_norm", float("nan"))),
        residual_norm=float(found.stats.get("residual_norm", float("nan"))),
    )
    finite = all(bool(x.isfinite().all()) for x in leaves(found.value))
    return replace(check, verdict=_verdict(check, found.stats, finite, length))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of methods, whose content is part of the verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypergradientWarning)
        yield


def _directions(outer: Tree, reference: Tree, count: int, seed: int) -> Iterator[tuple[str, Tree]]:
    """Named directions, with entries of at most the size of the leaf they move (or 1)."""
    largest = max(float(g.abs().max()) if g.numel() else 0.0 for g in leaves(reference))
    if 0 < largest < math.inf:
        yield "along the hypergradient", map_leaves(lambda g: g / largest, reference)
    paths, columns, _ = optree.tree_flatten_with_path(outer)
    names = ["outer" + "".join(f"[{key!r}]" for key in path) for path in paths]
    scales = [float(x.square().mean().sqrt()) or 1.0 for x in columns]
    generator = torch.Generator().manual_seed(seed)
    blocks = min(BLOCKS, len(columns))
    for block in range(blocks):
        own = range(block * len(columns) // blocks, (block + 1) * len(columns) // blocks)
        name = names[own[0]] + (f" to {names[own[-1]]}" if len(own) > 1 else "")
        for k in range(count):
            signs = [
                scale * (2.0 * torch.randint(2, x.shape, generator=generator) - 1).to(x)
                if i in own
                else torch.zeros_like(x)
                for i, (x, scale) in enumerate(zip(columns, scales, strict=True))
            ]
            yield f"random signs {k + 1} on {name}", rebuild(outer, signs)


def _relative_error(difference: float, reference: Tree, direction: Tree, rounding: float) -> float:
    """|difference - <reference, direction>| without rounding, beside the larger of the two.

    Signs may by chance be nearly orthogonal to the derivative; a tenth of the size that its products with random signs
    have on the average is the least to compare with.
    """
    g, d = ravel(reference).double(), ravel(direction).double()
    slope, typical = float(g.dot(d)), float((g * d).norm())
    if not (math.isfinite(difference) and math.isfinite(slope)):
        return float("nan")
    excess = max(abs(difference - slope) - rounding, 0.0)
    return excess / max(abs(difference), abs(slope), 0.1 * typical) if excess else 0.0


def _cosine(a: Tree, b: Tree) -> float:
    x, y = ravel(a).double(), ravel(b).double()
    return float(x.dot(y) / (x.norm() * y.norm())) if bool(x.norm() > 0) and bool(y.norm() > 0) else float("nan")


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.inf if a else math.nan)


def _verdict(check: HypergradientCheck, stats: dict[str, Any], finite: bool, reference: float) -> str:
    if math.isnan(check.finite_difference_error) or not math.isfinite(reference):
        return (
            f"Not finite: the outer loss or its exact derivative is NaN or infinite {check.worst_direction}. Look "
            "for a division by zero, the root of zero or an overflow in a loss."
        )
    if not check.finite_difference_error < TOLERANCE:
        return (
            f"The reference itself disagrees with finite differences (relative error "
            f"{check.finite_difference_error:.1e}, {check.worst_direction}): a loss is not a pure function of its "
            "arguments (random numbers from outside torch), a path in it is detached, a function's own backward is "
            "wrong, or it has kinks that `step` straddles."
        )
    if not finite:
        return "Do not follow it: the method's hypergradient is not finite, while the exact one is."
    if not reference:
        return "The exact hypergradient is zero: the outer variables have no influence on the outer loss here." + (
            "" if math.isnan(check.norm_ratio) else " The method's is not: do not follow it."
        )
    if not check.norm_ratio:
        return (
            "Do not follow it: the method's hypergradient is exactly zero, the exact one is not; for a method without "
            "second derivatives the outer variables may have no direct part."
        )
    return _comparison(check) + _remarks(check, stats)


def _comparison(check: HypergradientCheck) -> str:
    text = f"The method points along the exact derivative to cosine {check.cosine:.3f}"
    text += f", {check.norm_ratio:.3g} times as long."
    if check.cosine > 0.9 and check.indirect_cosine < 0.5:
        text += (
            f" But its indirect part does not (cosine {check.indirect_cosine:.2f}): the direct part, "
            f"{1 / max(check.indirect_share, 1e-300):.0f} times larger, hides it."
        )
    elif check.cosine < 0:
        text += " Do not follow it: it points against the exact derivative, uphill."
    elif check.cosine < 0.5:
        text += " Do not follow it: train the inner problem further, or choose another method."
    if not 0.5 <= check.norm_ratio <= 2:
        text += (
            f" Its length is off by a factor of {check.norm_ratio:.1e}: a step size in the method does not match the "
            "inner optimizer, or the outer learning rate has to make up for it."
        )
    return text


def _remarks(check: HypergradientCheck, stats: dict[str, Any]) -> str:
    text = ""
    if not bool(stats.get("converged", True)):
        text += (
            f" Its linear system was not solved (residual {check.residual_norm:.1e}): allow more iterations, or add "
            "damping."
        )
    if float(stats.get("minimum_curvature", 1.0)) <= 0:
        text += " The inner Hessian has negative curvature there: the inner variables are at no minimum."
    return text
