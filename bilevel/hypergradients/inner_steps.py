"""One differentiable inner step, and the states that a run of them passes through."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from bilevel.inner_optimizers import Transformation, apply_updates
from bilevel.problem import BilevelProblem, scalar_loss
from bilevel.tree import Tree, gradient, leaves, map_leaves, norm, rebuild


class Point(NamedTuple):
    """Inner variables and optimizer state between two steps."""

    inner: Tree
    state: Any


class StepFacts(NamedTuple):
    """What a step saw: the inner loss and the norm of its gradient, as 0-d tensors."""

    loss: Tensor
    gradient_norm: Tensor


def check_optimizer(optimizer: Any) -> None:
    """Raise unless `optimizer` is a differentiable (init, update) pair.

    Raises:
        TypeError: naming what it is instead.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"`optimizer` must be a differentiable (init, update) pair such as bilevel.sgd(lr=0.1), got "
            f"{type(optimizer).__name__}; torch.optim optimizers change parameters in place and cannot be "
            "differentiated through."
        )


def check_steps(name: str, value: int) -> None:
    """Raise unless a count is positive."""
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def inner_step(
    problem: BilevelProblem, optimizer: Transformation, point: Point, outer: Tree, batch: Any, create_graph: bool
) -> tuple[Point, StepFacts]:
    """`w <- w + U(df/dw, s, w)`, with a graph of the whole step if `create_graph`.

    Raises:
        ValueError: if the loss does not depend on the inner variables.
    """
    loss = scalar_loss(problem.inner_loss, "inner_loss", point.inner, outer, batch)
    if not loss.requires_grad:
        raise ValueError("`inner_loss` does not depend on the inner variables: is something detached in it?")
    grads = gradient(loss, point.inner, create_graph=create_graph)
    updates, state = optimizer.update(grads, point.state, params=point.inner, inplace=False)
    facts = StepFacts(loss.detach(), norm([g.detach() for g in leaves(grads)]))
    return Point(apply_updates(point.inner, updates), state), facts


def run_plain(
    problem: BilevelProblem,
    optimizer: Transformation,
    point: Point,
    outer: Tree,
    batches: Sequence[Any],
    steps: range,
) -> Point:
    """Take `steps` (indices into the cycled batches) without keeping a graph."""
    for t in steps:
        point = as_leaves(point)
        point, _ = inner_step(problem, optimizer, point, outer, batches[t % len(batches)], create_graph=False)
    return as_leaves(point)


def as_leaves(point: Point) -> Point:
    """The same values as fresh variables: inner variables and the floating point part of the state."""

    def fresh(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.detach().requires_grad_(True)
        return x.detach() if isinstance(x, Tensor) else x

    return Point(map_leaves(fresh, point.inner), map_state(fresh, point.state))


def map_state(function: Any, state: Any) -> Any:
    """Apply a function to every leaf of an optimizer state, numbers included; None stays None."""
    return optree.tree_map(function, state, none_is_leaf=False)


def tensors_of(point: Point) -> list[Tensor]:
    """The floating point tensors of a point, inner variables first."""
    state = [x for x in optree.tree_leaves(point.state) if isinstance(x, Tensor) and x.is_floating_point()]
    return [*leaves(point.inner), *state]


def zero_cotangents(point: Point, inner: Tree) -> list[Tensor]:
    """Cotangents of `tensors_of(point)`: `inner` for the inner variables, zeros for the state."""
    first = leaves(inner)
    return [*first, *(torch.zeros_like(x) for x in tensors_of(point)[len(first) :])]


def add_into(total: Tree, part: Sequence[Tensor | None]) -> Tree:
    """Sum of both, where a missing part is zero."""
    return rebuild(total, [x if g is None else x + g for x, g in zip(leaves(total), part, strict=True)])
