"""What every hypergradient method shares: its signature, and the value and gradients of the outer loss."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bilevel.problem import BilevelProblem, evaluate
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, check_variables, gradient, leaves


class HypergradientWarning(UserWarning):
    """A hypergradient whose assumptions do not hold where it was evaluated."""


class HypergradientMethod(Protocol):
    """One signature for every method."""

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Estimate dF(w*(a), a)/da near `inner`."""
        ...


class OuterGradients(NamedTuple):
    """F, dF/dw and dF/da at a point."""

    loss: Tensor
    inner: Tree
    direct: Tree


def outer_gradients(problem: BilevelProblem, inner: Tree, outer: Tree, batch: Any) -> OuterGradients:
    """Evaluate the outer loss and its gradients with respect to both trees, at detached copies of them.

    Raises:
        ValueError: if the loss depends on neither.
    """
    w, a = as_variables(inner), as_variables(outer)
    loss = evaluate(problem, "outer_loss", w, a, batch)
    if not loss.requires_grad:
        raise ValueError(
            "`outer_loss` depends neither on the inner nor on the outer variables: was it evaluated under "
            "torch.no_grad(), or is something detached in it?"
        )
    grads = gradient(loss, (w, a))
    return OuterGradients(loss.detach(), *grads)


def assemble(outer: OuterGradients, indirect: Tree, stats: dict[str, Any]) -> Hypergradient:
    """Add direct and indirect terms and pack the record."""
    return Hypergradient(
        value=add(outer.direct, indirect),
        direct=outer.direct,
        indirect=indirect,
        inner_gradient=outer.inner,
        outer_loss=outer.loss,
        stats=stats,
    )


def checked_batches(inner: Tree, outer: Tree, inner_batches: Sequence[Any], least: int = 1) -> list[Any]:
    """Check the trees and return the batches as a list.

    Raises:
        ValueError: if a tree is empty or fewer than `least` batches were given.
    """
    check_variables(inner, "inner")
    check_variables(outer, "outer")
    devices = {str(x.device) for x in leaves((inner, outer))}
    if len(devices) > 1:
        raise ValueError(
            f"`inner` and `outer` lie on several devices ({', '.join(sorted(devices))}); move them to one."
        )
    batches = list(inner_batches)
    if len(batches) < least:
        raise ValueError(f"`inner_batches` holds {len(batches)} batches; this method needs at least {least}.")
    return batches


def warn_if_unreliable(stats: dict[str, Any]) -> None:
    """Warn where an implicit estimate rests on a system that was not solved or on negative curvature."""
    curvature = stats["minimum_curvature"]
    if bool((curvature <= 0).any()):
        warnings.warn(
            f"The inner Hessian has a direction of curvature {float(curvature.min()):.2e} <= 0, so the inner variables "
            "are not at a minimum and the implicit hypergradient may point anywhere; train the inner problem further, "
            "add damping, or use Unrolled.",
            HypergradientWarning,
            stacklevel=3,
        )
    elif not bool(torch.as_tensor(stats["converged"]).all()):
        warnings.warn(
            f"The linear system was not solved (residual {float(stats['residual_norm'].max()):.2e} after "
            f"{stats['iterations']} products); raise max_iter or terms, or loosen rtol.",
            HypergradientWarning,
            stacklevel=3,
        )
