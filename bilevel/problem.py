"""The bilevel problem: two scalar losses over two trees of variables, and nothing else."""

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.attention import composed_attention
from bilevel.tree import Tree, leaves

Loss = Callable[[Tree, Tree, Any], Tensor]
"""`loss(inner, outer, batch) -> 0-d tensor`."""


@dataclass(frozen=True)
class BilevelProblem:
    """min over a of F(w*(a), a) subject to w*(a) = argmin over w of f(w, a).

    Attributes:
        inner_loss: `f(inner, outer, batch) -> 0-d tensor`, a pure function of its arguments.
        outer_loss: `F(inner, outer, batch) -> 0-d tensor`, a pure function of its arguments.
        lead: leading dimensions of every variable that number independent problems, each with its own loss: 0, or 1
            in a problem made by `bilevel.batched`.

    `inner` (w) and `outer` (a) are trees of tensors; `batch` is passed through untouched. A variable may be in both
    trees: the two are then differentiated separately, and the caller decides which gradient to follow.

    Example:
        >>> import torch
        >>> problem = BilevelProblem(lambda w, a, _: (w - 2 * a).square() / 2, lambda w, a, _: w * w / 2)
        >>> problem.inner_loss(torch.tensor(1.0), torch.tensor(1.0), None)
        tensor(0.5000)
    """

    inner_loss: Loss
    outer_loss: Loss
    lead: int = 0


@dataclass(frozen=True)
class ComposedLoss:
    """A loss that shows its predictions, `loss(predict(inner, outer, batch), outer, batch)`.

    Where the inner loss is one, `Implicit(curvature="gauss_newton")` can leave out the curvature of `predict`.

    Attributes:
        predict: `predict(inner, outer, batch) -> Tensor`, the model's outputs.
        loss: `loss(predictions, outer, batch) -> 0-d tensor`, convex in the predictions.
    """

    predict: Callable[[Tree, Tree, Any], Tensor]
    loss: Callable[[Tensor, Tree, Any], Tensor]

    def __call__(self, inner: Tree, outer: Tree, batch: Any) -> Tensor:
        """Evaluate both."""
        return self.loss(self.predict(inner, outer, batch), outer, batch)


_evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)


def inside_a_loss() -> bool:
    """Whether this code runs inside a loss that a hypergradient method is evaluating."""
    return _evaluating.get()


def evaluate(
    problem: BilevelProblem, name: str, inner: Tree, outer: Tree, batch: Any, *, second_order: bool = False
) -> Tensor:
    """Evaluate a loss by its name and check that it is one number (per problem).

    Args:
        problem: the two losses.
        name: `inner_loss` or `outer_loss`.
        inner: inner variables.
        outer: outer variables.
        batch: passed through.
        second_order: whether the value is to be differentiated twice, or by forward mode: attention then takes the
            kernel that allows it.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it holds another count of numbers, or complex ones.
        RuntimeError: if it has changed a variable in place.
    """
    variables = leaves((inner, outer))
    versions = [x._version for x in variables]
    token = _evaluating.set(True)
    try:
        with composed_attention() if second_order else nullcontext():
            value = getattr(problem, name)(inner, outer, batch)
    finally:
        _evaluating.reset(token)
    if [x._version for x in variables] != versions:
        raise RuntimeError(
            f"`{name}` has changed one of its variables in place (by F.embedding(max_norm=...), a copy_ under no_grad, "
            "or the like), and with it the tensor that was passed in. A loss must be a pure function: work on a copy."
        )
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` returned a {type(value).__name__}; it must return a tensor.")
    if value.is_complex():
        raise ValueError(f"`{name}` returned a complex number; take its real part, or its absolute value.")
    if problem.lead:
        return value
    if value.numel() != 1:
        raise ValueError(f"`{name}` returned a tensor of shape {tuple(value.shape)}; reduce it to one number (mean).")
    return value.reshape(()) if value.ndim else value  # a view would be one more node for every product to cross


def mean_inner_loss(
    problem: BilevelProblem, inner: Tree, outer: Tree, batches: list[Any], *, second_order: bool = False
) -> Tensor:
    """Mean of the inner loss over `batches`: one function for every product with its Hessian."""
    losses = [evaluate(problem, "inner_loss", inner, outer, batch, second_order=second_order) for batch in batches]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)
