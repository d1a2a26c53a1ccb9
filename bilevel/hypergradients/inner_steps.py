"""One differentiable inner step, and the states that a run of them passes through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from bilevel.hypergradients.base import require_counts, require_dependence
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike, Transformation, apply_updates, bind
from bilevel.tree import Tree, as_variables, detach, gradient, leaves, map_leaves, norm, rebuild


class Point(NamedTuple):
    """Inner variables and optimizer state between two steps."""

    inner: Tree
    state: Any


class StepFacts(NamedTuple):
    """What a step saw: the inner loss and its gradient."""

    loss: Tensor
    gradient: Tree

    def stats(self, method: str, steps: int, lead: int) -> dict[str, Any]:
        """The record of an unroll whose last step saw this."""
        return {
            "method": method,
            "steps": steps,
            "inner_loss": self.loss.detach(),
            "inner_gradient_norm": norm(detach(self.gradient), lead),
        }


Start = Callable[[Tree, Tree], Tree]
"""`start(inner, outer) -> inner`: where an unroll begins, as a differentiable function of the outer variables."""


def check_optimizer(optimizer: Any) -> None:
    """Raise unless `optimizer` is a differentiable (init, update) pair or a function that makes one.

    Raises:
        TypeError: naming what it is instead.
    """
    pair = hasattr(optimizer, "init") and hasattr(optimizer, "update")
    if not pair and (isinstance(optimizer, type) or not callable(optimizer)):
        name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(
            f"`optimizer` must be a differentiable (init, update) pair such as bilevel.sgd(lr=0.1), or a function "
            f"`outer -> pair`, got {name}; torch.optim optimizers change parameters in place and cannot be "
            "differentiated through (bilevel.from_torch makes their twins)."
        )


@dataclass(frozen=True)
class Stepping:
    """Settings of the methods that take T inner steps.

    Attributes:
        optimizer: a differentiable update rule, or a function `outer -> rule`.
        steps: T.
    """

    optimizer: OptimizerLike
    steps: int

    def __post_init__(self) -> None:
        require_counts(steps=self.steps)
        check_optimizer(self.optimizer)


def starting_point(
    optimizer: OptimizerLike, inner: Tree, outer: Tree, start: Start | None = None, state: Any = None
) -> Point:
    """Where an unroll begins: fresh inner variables and state, connected to `outer` through `start` alone.

    Args:
        optimizer: the update rule.
        inner: inner variables.
        outer: outer variables; with gradients, `start` is differentiated.
        start: maps both to the first inner variables; None begins at `inner`.
        state: optimizer state to continue from; None begins with that of `init`.
    """
    w = as_variables(inner)
    if start is not None:
        w = start(w, outer)
        if [x.shape for x in leaves(w)] != [x.shape for x in leaves(inner)]:
            raise ValueError("`start(inner, outer)` must return a tree of the structure and shapes of `inner`.")
        w = inner = map_leaves(_connected, w)
    state = bind(optimizer, outer).init(as_variables(inner)) if state is None else state
    return Point(w, as_leaves(Point(inner, state)).state)


def _connected(x: Tensor) -> Tensor:
    """A variable of its own: a copy keeps apart what `start` took from the outer tree as it is."""
    return x.clone() if x.requires_grad else x.detach().requires_grad_(True)


def inner_step(
    at: Instance, optimizer: Transformation, point: Point, outer: Tree, step: int, create_graph: bool
) -> tuple[Point, StepFacts]:
    """`w <- w + U(df/dw, s, w)` on the batch of a step, with a graph of all of it if `create_graph`.

    Raises:
        ValueError: if the loss does not depend on the inner variables.
    """
    loss = at.inner_loss_at(step, point.inner, outer, second_order=create_graph)
    require_dependence(loss)
    grads = gradient(loss, point.inner, create_graph=create_graph)
    updates, state = optimizer.update(grads, point.state, params=point.inner, inplace=False)
    connected = any(g.requires_grad for g in leaves(grads))
    if create_graph and connected and not any(u.requires_grad for u in leaves(updates)):
        raise ValueError(
            "The `optimizer` is not differentiable: its updates do not depend on the gradients (is there a no_grad or "
            "a detach in `update`?)."
        )
    return Point(apply_updates(point.inner, updates), state), StepFacts(loss, grads)


def run_plain(at: Instance, optimizer: OptimizerLike, point: Point, steps: range, outer: Tree | None = None) -> Point:
    """Take `steps` without keeping a graph, at other outer variables where they are given."""
    outer = detach(at.outer if outer is None else outer)
    rule = bind(optimizer, outer)
    for t in steps:
        point, _ = inner_step(at, rule, as_leaves(point), outer, t, create_graph=False)
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
