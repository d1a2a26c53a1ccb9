"""The one door to a hypergradient, by method object or by registry name."""

import warnings
from collections.abc import Sequence
from typing import Any

import optree
import torch

from bilevel.deprecation import current_key
from bilevel.hypergradients.base import HypergradientMethod, HypergradientWarning, NotFiniteError
from bilevel.hypergradients.implicit import Implicit
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.rank_one_gauss_newton import RankOneGaussNewton
from bilevel.linear_solvers import MINRES, ConjugateGradient, Identity, Neumann, Nystrom
from bilevel.problem import BilevelProblem, inside_a_loss
from bilevel.registry import Registry
from bilevel.results import Hypergradient
from bilevel.tree import Tree

METHODS: Registry[HypergradientMethod] = Registry("hypergradient method")
METHODS.register("conjugate_gradient", Implicit(ConjugateGradient()))
METHODS.register("minres", Implicit(MINRES()))
METHODS.register("neumann", Implicit(Neumann()))
METHODS.register("nystrom", Implicit(Nystrom()))
METHODS.register("identity", Implicit(Identity(), warn=False))
METHODS.register("rank_one_gauss_newton", RankOneGaussNewton())
METHODS.register("rank_one_gauss_newton_as_published", RankOneGaussNewton(as_published=True))


def resolve_method(
    method: HypergradientMethod | str | None, next_step: HypergradientMethod | None = None
) -> HypergradientMethod:
    """The method object for an object, a registry name, or None.

    The default is stated here and nowhere else: the exact derivative of the next inner step where the optimizer that
    takes it is known, as to a trainer; otherwise the implicit function theorem with conjugate gradients.

    Args:
        method: an object, a name, or None for the default.
        next_step: the method for None, where a running optimizer is known.
    """
    if method is None:
        return next_step or METHODS["conjugate_gradient"]
    return METHODS[current_key("bilevel.hypergradients.METHODS", method)] if isinstance(method, str) else method


def hypergradient(
    problem: BilevelProblem,
    inner: Tree,
    outer: Tree,
    inner_batches: Sequence[Any],
    outer_batch: Any,
    method: HypergradientMethod | str | None = None,
    *,
    state: Any = None,
    throw: bool = False,
) -> Hypergradient:
    """Derivative of the outer loss at the inner solution with respect to the outer variables.

    Args:
        problem: the two losses.
        inner: tree of inner variables, at or near a minimum of the inner loss (for `Unrolled`: the start).
        outer: tree of outer variables.
        inner_batches: batches for the inner loss, one per unrolled step; implicit methods average over them.
        outer_batch: batch for the outer loss.
        method: a method object, or one of `conjugate_gradient` (the default), `minres`, `neumann`, `nystrom`,
            `identity`, `rank_one_gauss_newton`, `rank_one_gauss_newton_as_published`.
        state: what the method carries from call to call (`WarmStart`, `F2SA`, `MESO`, `RecomputedUnrolled`): the
            `.state` of the result before on the same problem. None begins anew; other methods carry nothing.
        throw: raise where the result is not finite, instead of warning.

    Returns:
        `.value`, `.direct` and `.indirect` (trees like `outer`), `.stats`, `.state`. Nothing passed in is changed.

    Raises:
        ValueError: for an unknown name, an empty tree, no batch, a loss that is not a scalar, an optimizer that is not
            differentiable, or a state of a method that has none.
        NotFiniteError: if the result is not finite and `throw` is set.
        RuntimeError: if it is called inside a loss of another hypergradient, where its derivative would be lost.

    Warns:
        HypergradientWarning: if the result is not finite (it is returned as it is), or rests on a system that was not
            solved.

    Example:
        >>> import torch
        >>> f = BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
        >>> w, a = torch.tensor(6.0), torch.tensor(2.0)
        >>> hypergradient(f, w, a, [None], None).value  # b (w - c) = 3 * (6 - 1)
        tensor(15.)
    """
    if inside_a_loss() and torch.is_grad_enabled():
        raise RuntimeError(
            "`hypergradient` was called inside a loss that is being differentiated, and its result is a constant: its "
            "own derivative would be missing. Call it under torch.no_grad() if a constant is what you mean; nested "
            "problems need a loss that solves the inner one differentiably."
        )
    at = Instance(problem, inner, outer, list(inner_batches), outer_batch)
    at.check()
    with torch.enable_grad():  # a caller in evaluation mode (no_grad) wants a derivative all the same
        found = _call(resolve_method(method), at, state)
    broken = _not_finite(found)
    if broken and throw:
        raise NotFiniteError(f"The hypergradient is not finite in {broken}")
    if broken:
        warnings.warn(
            f"The hypergradient is not finite in {broken}: a loss or its derivative overflowed or divided by zero. "
            "Look at the inner loss in `stats`, lower the inner learning rate, or check the batch.",
            HypergradientWarning,
            stacklevel=2,
        )
    return found


def _call(method: HypergradientMethod, at: Instance, state: Any) -> Hypergradient:
    arguments = (at.problem, at.inner, at.outer, at.inner_batches, at.outer_batch)
    if state is None:
        return method(*arguments)
    if not hasattr(method, "init"):
        raise ValueError(
            f"`state` was given, but {type(method).__name__} carries none from call to call. The state of an inner "
            "optimizer is a setting of the method: Unrolled(optimizer, steps, state=...)."
        )
    carrying: Any = method
    found: Hypergradient = carrying(*arguments, state)
    return found


def _not_finite(found: Hypergradient) -> list[str]:
    """Names of the outer variables whose hypergradient holds NaN or infinity, and of the outer loss if it does."""
    paths, values, _ = optree.tree_flatten_with_path(found.value)
    names = ["outer" + "".join(f"[{key!r}]" for key in path) for path in paths]
    checks = torch.stack([x.isfinite().all() for x in (*values, found.outer_loss)]).tolist()
    return [name for name, ok in zip([*names, "outer_loss"], checks, strict=True) if not ok]
