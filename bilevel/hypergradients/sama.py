"""Scalable meta learning: the one-step form with the optimizer's own scaling and a finite difference."""

from dataclasses import dataclass
from typing import Any

from bilevel.hypergradients.base import Method, assemble, require_positive
from bilevel.hypergradients.finite_difference import difference_product
from bilevel.hypergradients.inner_steps import check_optimizer, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike, bind
from bilevel.results import Hypergradient
from bilevel.tree import as_variables, gradient, norm, vector_jacobian


@dataclass(frozen=True)
class SAMA(Method):
    """`dF/da + (d2f / da dw) v` with `v = (dU/dg)' dF/dw`, U(g) the update of the inner optimizer at gradient g.

    It is the derivative of F after one step w + U(df/dw), so it equals `Unrolled(optimizer, 1)` but for the finite
    difference that replaces the second derivative and for dF/dw, which is taken before the step. For plain SGD,
    v = -lr dF/dw and SAMA is `FiniteDifference(lr)`; for Adam, dU/dg is its diagonal adaptation at the given moments.
    Cost: one gradient of F, three of f.

    Attributes:
        optimizer: see `Unrolled`.
        state: optimizer state (moments) at the inner variables; `bilevel.from_torch` reads it from a running optimizer.
            None takes a fresh one, for which Adam's adaptation nearly vanishes (its first step is the sign of g).
        radius: length in w of the step of the difference.

    Source: Choe et al. (SAMA, NeurIPS 2023).
    """

    optimizer: OptimizerLike
    state: Any = None
    radius: float = 0.01

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        require_positive(radius=self.radius)

    def estimate(self, at: Instance) -> Hypergradient:
        """Evaluate four gradients; see the class."""
        outer_part = at.outer_gradients()
        inner, outer = at.constants()
        point = starting_point(self.optimizer, inner, outer, state=self.state)
        loss = at.inner_loss(point.inner, outer)
        grads = as_variables(gradient(loss, point.inner))
        rule = bind(self.optimizer, outer)
        updates, _ = rule.update(grads, point.state, params=point.inner, inplace=False)
        adapted = vector_jacobian(updates, grads, outer_part.inner)
        product, epsilon = difference_product(at, adapted, self.radius)
        stats = {
            "method": "sama",
            "epsilon": epsilon,
            "inner_loss": loss.detach(),
            "inner_gradient_norm": norm(grads, at.problem.lead).detach(),
        }
        return assemble(outer_part, product, stats)
