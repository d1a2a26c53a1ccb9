"""Hypergradient by reverse-mode differentiation through T steps of an inner optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bilevel.hypergradients.base import assemble, checked_batches, outer_gradients
from bilevel.inner_optimizers import Transformation, apply_updates
from bilevel.problem import BilevelProblem, scalar_loss
from bilevel.results import Hypergradient
from bilevel.tree import Tree, as_variables, gradient, leaves, map_leaves, norm, vector_jacobian


@dataclass(frozen=True)
class Unrolled:
    """Exact derivative of F(w_T(a), a), where w_T is the T-th iterate of an inner optimizer started at `inner`.

    w_{t+1} = w_t + U(df/dw(w_t, a; batch_t), s_t, w_t); the result is
    `dF/da(w_T, a) + (dw_T/da)' dF/dw(w_T, a)`, with the second term by one backward pass through all T steps.

    Cost: about 2.4 to 3 plain steps per inner step; memory of T inner graphs. The given inner variables are the start
    and stay as they are; the look-ahead is thrown away.

    Attributes:
        optimizer: a differentiable update rule (`bilevel.sgd`, `adam`, `adamw`, or a torchopt transformation).
        steps: T; step t uses inner batch t, cycling if fewer batches are given.

    Source: Maclaurin, Duvenaud and Adams (2015); Franceschi et al. (2017), reverse mode.
    """

    optimizer: Transformation
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        if not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise TypeError(
                f"`optimizer` must be a differentiable (init, update) pair such as bilevel.sgd(lr=0.1), got "
                f"{type(self.optimizer).__name__}; torch.optim optimizers change parameters in place and cannot be "
                "differentiated through."
            )

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Unroll and differentiate; see the class."""
        batches = checked_batches(inner, outer, inner_batches)
        start, a = as_variables(inner), as_variables(outer)
        w, state = start, self.optimizer.init(start)
        for t in range(self.steps):
            loss = scalar_loss(problem.inner_loss, "inner_loss", w, a, batches[t % len(batches)])
            if t == 0 and not loss.requires_grad:
                raise ValueError("`inner_loss` does not depend on the inner variables: is something detached in it?")
            grads = gradient(loss, w, create_graph=True)
            updates, state = self.optimizer.update(grads, state, params=w, inplace=False)
            w = apply_updates(w, updates)
        final = map_leaves(lambda x: x.detach(), w)
        outer_part = outer_gradients(problem, final, outer, outer_batch)
        indirect = vector_jacobian(w, a, outer_part.inner)
        stats = {
            "method": "unrolled",
            "steps": self.steps,
            "inner_loss": loss.detach(),
            "inner_gradient_norm": norm([g.detach() for g in leaves(grads)]),
        }
        return assemble(outer_part, indirect, stats)
