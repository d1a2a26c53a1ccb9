"""Hypergradient with a finite difference in place of the second derivative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bilevel.hypergradients.base import assemble, checked_batches, outer_gradients
from bilevel.problem import BilevelProblem, mean_inner_loss
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, gradient, norm, scale


@dataclass(frozen=True)
class FiniteDifference:
    """`dF/da - step_size (d2f / da dw) g`, with the product by a central difference along g = dF/dw.

    `(d2f / da dw) g ~ (df/da(w + e g) - df/da(w - e g)) / (2 e)`, e = radius / |g|. It is the one-step form (H^-1
    replaced by step_size I) without any second derivative: two gradients of F, two of f. The error of the difference is
    O(e^2 |g|^3) by truncation and O(eps / e) by rounding; in float32 radius = 0.01 suits losses of order one.

    Attributes:
        step_size: the inner step that stands for the inverse Hessian.
        radius: length in w of the step of the difference.

    Source: Liu et al. (DARTS, ICLR 2019), equation 8.
    """

    step_size: float
    radius: float = 0.01

    def __post_init__(self) -> None:
        for name in ("step_size", "radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Evaluate four gradients; see the class."""
        batches = checked_batches(inner, outer, inner_batches)
        outer_part = outer_gradients(problem, inner, outer, outer_batch)
        length = norm(outer_part.inner)
        epsilon = self.radius / torch.where(length > 0, length, torch.ones_like(length))
        sides = []
        for sign in (1.0, -1.0):
            w, a = as_variables(add(inner, scale(sign * epsilon, outer_part.inner))), as_variables(outer)
            sides.append(gradient(mean_inner_loss(problem, w, a, batches), a))
        product = scale(1 / (2 * epsilon), add(sides[0], scale(-1.0, sides[1])))
        stats = {"method": "finite_difference", "epsilon": epsilon}
        return assemble(outer_part, scale(-self.step_size, product), stats)
