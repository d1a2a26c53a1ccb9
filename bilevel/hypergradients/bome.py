"""BOME: a dynamic barrier on the gap of the inner loss."""

from dataclasses import dataclass

import torch

from bilevel.hypergradients.base import Method, assemble, require_positive
from bilevel.hypergradients.inner_steps import Stepping
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.penalty import descend, outer_slope
from bilevel.results import Hypergradient
from bilevel.tree import add, dot, gradient, norm, scale, subtract


@dataclass(frozen=True)
class BOME(Method, Stepping):
    """`dF/da + l dq/da` with q = f(w, a) - f(w_T, a), w_T after T inner steps, held constant.

    l = max((control |grad q|^2 - <grad F, grad q>) / |grad q|^2, 0), gradients over (w, a) together, is the least
    multiplier for which a step along `-(grad F + l grad q)` shrinks q. Cost: T plain steps, two gradients of f and one
    of F. `Hypergradient.inner` is w - step_size (dF/dw + l dq/dw).

    Attributes:
        optimizer: update rule of the T steps.
        steps: T.
        control: eta, how fast q has to shrink.
        step_size: of the step in w; 0 leaves the inner variables where they are.

    Source: Ye et al. (BOME, NeurIPS 2022).
    """

    steps: int = 10
    control: float = 0.5
    step_size: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(control=self.control)

    def estimate(self, at: Instance) -> Hypergradient:
        """Look ahead, then weigh both gradients; see the class."""
        ahead = descend(at, self.optimizer, self.steps)
        w, a = at.variables()
        here = at.inner_loss(w, a)
        q_w, q_a = gradient(here, (w, a))
        q_a = subtract(q_a, outer_slope(at, ahead))
        outer_part = at.outer_gradients()
        lead = at.problem.lead
        squared = dot(q_w, q_w, lead) + dot(q_a, q_a, lead)
        along = dot(outer_part.inner, q_w, lead) + dot(outer_part.direct, q_a, lead)
        flat = squared <= torch.finfo(squared.dtype).tiny
        needed = self.control - along / torch.where(flat, torch.ones_like(squared), squared)
        weight = torch.where(flat, torch.zeros_like(squared), needed.clamp(min=0))
        move = add(outer_part.inner, scale(weight, q_w))
        stats = {"method": "bome", "multiplier": weight, "steps": self.steps, "inner_loss": here.detach()}
        stats |= {"inner_gradient_norm": norm(q_w, lead)}
        moved = subtract(at.inner, scale(self.step_size, move)) if self.step_size else None
        return assemble(outer_part, scale(weight, q_a), stats, inner=moved)
