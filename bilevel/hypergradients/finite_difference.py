"""Hypergradient with a finite difference in place of the second derivative."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.hypergradients.base import Method, assemble, require_positive
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.repetition import RandomState, device_of
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, gradient, norm, scale, subtract


@dataclass(frozen=True)
class FiniteDifference(Method):
    """`dF/da - step_size (d2f / da dw) g`, with the product by a central difference along g = dF/dw.

    `(d2f / da dw) g ~ (df/da(w + e g) - df/da(w - e g)) / (2 e)`, e = radius / |g|. It is the one-step form (H^-1
    replaced by step_size I) without any second derivative: two gradients of F, two of f. The error of the difference is
    O(e^2 |g|^3) by truncation and O(eps / e) by rounding; in float32 radius = 0.01 suits losses of order one.

    Attributes:
        step_size: the inner learning rate; `step_size I` replaces the inverse Hessian.
        radius: length in w of the step of the difference.

    Source: Liu et al. (DARTS, ICLR 2019), equation 8.
    """

    step_size: float
    radius: float = 0.01

    def __post_init__(self) -> None:
        require_positive(step_size=self.step_size, radius=self.radius)

    def estimate(self, at: Instance) -> Hypergradient:
        """Evaluate four gradients; see the class."""
        outer_part = at.outer_gradients()
        product, epsilon = difference_product(at, outer_part.inner, self.radius)
        stats = {"method": "finite_difference", "epsilon": epsilon}
        return assemble(outer_part, scale(-self.step_size, product), stats)


def difference_product(at: Instance, vector: Tree, radius: float) -> tuple[Tree, Tensor]:
    """`(d2f / da dw) vector` by the central difference of df/da over `+-radius` along the vector, and e."""
    length = norm(vector, at.problem.lead)
    epsilon = radius / torch.where(length > 0, length, torch.ones_like(length))
    sides, random = [], RandomState.capture(device_of(at.inner))
    for sign in (1.0, -1.0):
        w, a = as_variables(add(at.inner, scale(sign * epsilon, vector))), as_variables(at.outer)
        with random.replayed():  # the same dropout masks on both sides, or their difference would drown the product
            sides.append(gradient(at.inner_loss(w, a), a))
    return scale(1 / (2 * epsilon), subtract(sides[0], sides[1])), epsilon
