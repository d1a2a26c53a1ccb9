"""The bilevel problem: two scalar losses over two trees of variables, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.tree import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
"""`loss(inner, outer, batch) -> 0-d tensor`."""


@dataclass(frozen=True)
class BilevelProblem:
    """min over a of F(w*(a), a) subject to w*(a) = argmin over w of f(w, a).

    Attributes:
        inner_loss: `f(inner, outer, batch) -> 0-d tensor`, a pure function of its arguments.
        outer_loss: `F(inner, outer, batch) -> 0-d tensor`, a pure function of its arguments.

    `inner` (w) and `outer` (a) are trees of tensors; `batch` is passed through untouched. A variable may stand in both
    trees: the two are then differentiated separately, and the caller decides which gradient to follow.

    Example:
        >>> import torch
        >>> problem = BilevelProblem(lambda w, a, _: (w - 2 * a).square() / 2, lambda w, a, _: w * w / 2)
        >>> problem.inner_loss(torch.tensor(1.0), torch.tensor(1.0), None)
        tensor(0.5000)
    """

    inner_loss: Loss
    outer_loss: Loss


def scalar_loss(loss: Loss, name: str, inner: Tree, outer: Tree, batch: Any) -> Tensor:
    """Evaluate a loss and check that it is a scalar tensor.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it holds more than one number.
    """
    value = loss(inner, outer, batch)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` returned a {type(value).__name__}; it must return a tensor.")
    if value.numel() != 1:
        raise ValueError(f"`{name}` returned a tensor of shape {tuple(value.shape)}; reduce it to one number (mean).")
    return value.reshape(())


def mean_inner_loss(problem: BilevelProblem, inner: Tree, outer: Tree, batches: list[Any]) -> Tensor:
    """Mean of the inner loss over `batches`: one function for every product with its Hessian."""
    losses = [scalar_loss(problem.inner_loss, "inner_loss", inner, outer, batch) for batch in batches]
    return torch.stack(losses).mean()
