"""Where a hypergradient is wanted: a problem with variables and batches, and its losses there."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from bilevel.problem import BilevelProblem, evaluate, mean_inner_loss
from bilevel.tree import Tree, as_variables, check_variables, detach, gradient, leaves


class OuterGradients(NamedTuple):
    """F, dF/dw and dF/da at a point."""

    loss: Tensor
    inner: Tree
    direct: Tree


@dataclass(frozen=True)
class Instance:
    """A problem with variables and batches: where a hypergradient is wanted.

    Attributes:
        problem: the two losses.
        inner: the given inner variables w.
        outer: the outer variables a.
        inner_batches: batches of the inner loss; step t of an unroll takes number t, cycling.
        outer_batch: batch of the outer loss.
    """

    problem: BilevelProblem
    inner: Tree
    outer: Tree
    inner_batches: list[Any]
    outer_batch: Any

    def check(self) -> None:
        """Raise unless both trees hold variables of one device, and there is a batch.

        Raises:
            TypeError: if a leaf is no floating point tensor.
            ValueError: otherwise.
        """
        check_variables(self.inner, "inner")
        check_variables(self.outer, "outer")
        devices = {str(x.device) for x in leaves((self.inner, self.outer))}
        if len(devices) > 1:
            raise ValueError(
                f"`inner` and `outer` lie on several devices ({', '.join(sorted(devices))}); move them to one."
            )
        if not self.inner_batches:
            raise ValueError("`inner_batches` is empty; a hypergradient needs at least 1 batch of the inner loss.")

    def require_one_problem(self, method: object) -> None:
        """Raise for a batched problem."""
        if self.problem.lead:
            raise ValueError(f"`{type(method).__name__}` takes one problem at a time; use Unrolled for a batched one.")

    def variables(self) -> tuple[Tree, Tree]:
        """Copies of w and a that require gradients."""
        return as_variables(self.inner), as_variables(self.outer)

    def constants(self) -> tuple[Tree, Tree]:
        """The values of w and a without a graph."""
        return detach(self.inner), detach(self.outer)

    def batch(self, step: int) -> Any:
        """The inner batch of a step."""
        return self.inner_batches[step % len(self.inner_batches)]

    def inner_loss(self, inner: Tree, outer: Tree, *, second_order: bool = False) -> Tensor:
        """Mean of f over all inner batches: one function for every product with its Hessian."""
        return mean_inner_loss(self.problem, inner, outer, self.inner_batches, second_order=second_order)

    def inner_loss_at(self, step: int, inner: Tree, outer: Tree, *, second_order: bool = False) -> Tensor:
        """The value of f on the batch of a step."""
        return evaluate(self.problem, "inner_loss", inner, outer, self.batch(step), second_order=second_order)

    def outer_loss(self, inner: Tree, outer: Tree) -> Tensor:
        """The value of F on the outer batch."""
        return evaluate(self.problem, "outer_loss", inner, outer, self.outer_batch)

    def outer_gradients(self, inner: Tree | None = None) -> OuterGradients:
        """F and its gradients with respect to both trees, at detached copies of `inner` (None: the given w) and a.

        Raises:
            ValueError: if the loss depends on neither.
        """
        w, a = as_variables(self.inner if inner is None else inner), as_variables(self.outer)
        loss = self.outer_loss(w, a)
        if not loss.requires_grad:
            raise ValueError(
                "`outer_loss` depends neither on the inner nor on the outer variables: was it evaluated under "
                "torch.no_grad(), or is something detached in it?"
            )
        return OuterGradients(loss.detach(), *gradient(loss, (w, a)))
