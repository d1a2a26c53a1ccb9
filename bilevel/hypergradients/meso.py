"""MESO: a single loop on the Moreau envelope of the inner loss."""

from dataclasses import dataclass
from typing import TypedDict

from bilevel.hypergradients.base import StatefulMethod, assemble, require_counts, require_positive
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.penalty import inner_slope, outer_slope
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, gradient, map_leaves, scale, subtract


class Companion(TypedDict):
    """State of `MESO`: the number of calls, and u, a tree like the inner variables (None before the first call)."""

    calls: int
    companion: Tree | None


@dataclass(frozen=True)
class MESO(StatefulMethod):
    """`dF/da(w) + c [df/da(w) - df/da(u)]`, u following the Moreau envelope of f at w: a single loop.

    The envelope v_g(w, a) = min_u f(u, a) + |u - w|^2 / (2 g) replaces the value function, which needs no convex f.
    Each of K rounds makes one step of both:
    `u <- u - s (df/dw(u) + (u - w) / g)`, `w <- w - r (dF/dw(w) / c + df/dw(w) - (w - u) / g)`. u is carried from
    call to call. Cost: K (2 gradients of f, 1 of F) and two outer gradients. `Hypergradient.inner` is w.

    Attributes:
        inner_step: s.
        step_size: r.
        rounds: K.
        radius: g.
        penalty: c at the first call.
        power: c grows with the number of calls k as `penalty * (k + 1)^power`; below 1/2.

    Source: Liu et al. (MEHA/MESO, ICML 2024, arXiv 2405.09927).
    """

    inner_step: float = 0.1
    step_size: float = 0.1
    rounds: int = 1
    radius: float = 1.0
    penalty: float = 1.0
    power: float = 0.25

    def __post_init__(self) -> None:
        require_counts(rounds=self.rounds)
        require_positive(inner_step=self.inner_step, step_size=self.step_size, radius=self.radius, penalty=self.penalty)
        if not 0 <= self.power < 0.5:
            raise ValueError(f"`power` must lie in [0, 0.5), got {self.power}.")

    def init(self) -> Companion:
        """No call yet; u begins at the inner variables of the first."""
        return {"calls": 0, "companion": None}

    def estimate(self, at: Instance, state: Companion) -> Hypergradient:
        """Move both w and u; see the class."""
        c = self.penalty * (state["calls"] + 1) ** self.power
        w, outer = at.constants()
        u = w if state["companion"] is None else map_leaves(lambda x, y: x.to(y), state["companion"], w)
        for _ in range(self.rounds):
            pull = scale(1 / self.radius, subtract(u, w))
            u = subtract(u, scale(self.inner_step, add(inner_slope(at, u), pull)))
            variables = as_variables(w)
            own = gradient(at.outer_loss(variables, outer), variables)
            slope = add(scale(1 / c, own), inner_slope(at, w))
            slope = subtract(slope, scale(1 / self.radius, subtract(w, u)))
            w = subtract(w, scale(self.step_size, slope))
        gap = subtract(outer_slope(at, w), outer_slope(at, u))
        after = Companion(calls=state["calls"] + 1, companion=u)
        stats = {"method": "meso", "penalty": c, "rounds": self.rounds}
        return assemble(at.outer_gradients(w), scale(c, gap), stats, inner=w, state=after)
