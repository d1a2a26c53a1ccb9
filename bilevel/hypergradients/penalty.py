"""First-order methods that replace the inner problem by a penalty: no second derivative, but moved inner variables.

With the value function v(a) = min over w of f(w, a), the bilevel problem is `min F(w, a)` subject to
`f(w, a) - v(a) <= 0`. All three methods penalise that gap, and so optimise w and a together: the hypergradient belongs
to inner variables of their own, which stand in `Hypergradient.inner`. `BilevelTrainer` adopts them.
"""

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bilevel.hypergradients.base import Method, assemble, require_counts, require_positive
from bilevel.hypergradients.inner_steps import SteppingMethod, run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike
from bilevel.problem import BilevelProblem
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, detach, dot, gradient, map_leaves, norm, scale, subtract


class Memory:
    """What a method carries from one call to the next: a count of calls and, where it has one, a companion of w.

    Each problem has its own; `calls` and `companion` are those of the problem seen last. A state that was loaded
    belongs to the problem that is seen next.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.companion: Tree | None = None
        self._loaded = False
        self._now: weakref.ref[BilevelProblem] | None = None
        self._others: weakref.WeakKeyDictionary[BilevelProblem, tuple[int, Tree | None]] = weakref.WeakKeyDictionary()

    def turn_to(self, problem: BilevelProblem) -> None:
        """Bring up what was kept for a problem; nothing, if it is a new one."""
        before = None if self._now is None else self._now()
        if before is problem:
            return
        if self._now is not None and not self._loaded:
            if before is not None:
                self._others[before] = (self.calls, self.companion)
            self.calls, self.companion = self._others.pop(problem, (0, None))
        self._now, self._loaded = weakref.ref(problem), False

    def state_dict(self) -> dict[str, Any]:
        """Both, as plain data."""
        return {"calls": self.calls, "companion": self.companion}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.calls, self.companion = state["calls"], state["companion"]
        self._loaded = True


class _Remembering:
    """State of a method, saved with the trainer's checkpoint."""

    memory: Memory

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers."""
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.memory.load_state_dict(state)


@dataclass(frozen=True)
class F2SA(SteppingMethod, _Remembering):
    """`dF/da(y) + l [df/da(y) - df/da(z)]` with y = argmin F + l f and z = argmin f, each by T steps from w.

    By the envelope theorem it is the gradient of min_w [F + l (f - v)], whose distance to the hypergradient is O(1/l).
    Cost: 2 T plain steps. `Hypergradient.inner` is y.

    Attributes:
        optimizer: update rule of both inner problems; the step must suit F + l f divided by 1 + l.
        steps: T.
        penalty: l at the first call.
        growth: added to l at every further call.

    Source: Kwon et al. (F2SA, ICML 2023).
    """

    steps: int = 10
    penalty: float = 1.0
    growth: float = 0.0
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(penalty=self.penalty)

    def estimate(self, at: Instance) -> Hypergradient:
        """Solve both inner problems; see the class."""
        problem = at.problem
        self.memory.turn_to(problem)
        weight = self.penalty + self.growth * self.memory.calls

        def penalised(w: Tree, a: Tree, batch: Any) -> Tensor:
            # Divided by 1 + l: the minimiser stays, and one step size serves every l.
            return (problem.outer_loss(w, a, at.outer_batch) + weight * problem.inner_loss(w, a, batch)) / (1 + weight)

        both = replace(at, problem=replace(problem, inner_loss=penalised))
        y, z = (_descend(instance, self.optimizer, self.steps) for instance in (both, at))
        gap = subtract(_outer_slope(at, y), _outer_slope(at, z))
        self.memory.calls += 1
        stats = {"method": "f2sa", "penalty": weight, "steps": self.steps}
        return assemble(at.outer_gradients(y), scale(weight, gap), stats, inner=y)


@dataclass(frozen=True)
class BOME(SteppingMethod):
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
        ahead = _descend(at, self.optimizer, self.steps)
        w, a = at.variables()
        here = at.inner_loss(w, a)
        q_w, q_a = gradient(here, (w, a))
        q_a = subtract(q_a, _outer_slope(at, ahead))
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


@dataclass(frozen=True)
class MESO(Method, _Remembering):
    """`dF/da(w) + c [df/da(w) - df/da(u)]`, u following the Moreau envelope of f at w: a single loop.

    The envelope v_g(w, a) = min_u f(u, a) + |u - w|^2 / (2 g) replaces the value function, which needs no convex f.
    Each of K rounds makes one step of both:
    `u <- u - s (df/dw(u) + (u - w) / g)`, `w <- w - r (dF/dw(w) / c + df/dw(w) - (w - u) / g)`. u is kept between
    calls. Cost: K (2 gradients of f, 1 of F) and two outer gradients. `Hypergradient.inner` is w.

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
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_counts(rounds=self.rounds)
        require_positive(inner_step=self.inner_step, step_size=self.step_size, radius=self.radius, penalty=self.penalty)
        if not 0 <= self.power < 0.5:
            raise ValueError(f"`power` must lie in [0, 0.5), got {self.power}.")

    def estimate(self, at: Instance) -> Hypergradient:
        """Move both companions; see the class."""
        self.memory.turn_to(at.problem)
        c = self.penalty * (self.memory.calls + 1) ** self.power
        w, outer = at.constants()
        u = w if self.memory.companion is None else map_leaves(lambda x, y: x.to(y), self.memory.companion, w)
        for _ in range(self.rounds):
            pull = scale(1 / self.radius, subtract(u, w))
            u = subtract(u, scale(self.inner_step, add(_inner_slope(at, u), pull)))
            variables = as_variables(w)
            own = gradient(at.outer_loss(variables, outer), variables)
            slope = add(scale(1 / c, own), _inner_slope(at, w))
            slope = subtract(slope, scale(1 / self.radius, subtract(w, u)))
            w = subtract(w, scale(self.step_size, slope))
        self.memory.calls += 1
        self.memory.companion = u
        gap = subtract(_outer_slope(at, w), _outer_slope(at, u))
        stats = {"method": "meso", "penalty": c, "rounds": self.rounds}
        return assemble(at.outer_gradients(w), scale(c, gap), stats, inner=w)


def _descend(at: Instance, optimizer: OptimizerLike, steps: int) -> Tree:
    """The inner variables after plain steps from the given ones, as constants."""
    point = starting_point(optimizer, *at.constants())
    return detach(run_plain(at, optimizer, point, range(steps)).inner)


def _outer_slope(at: Instance, inner: Tree) -> Tree:
    """df/da at constant w."""
    a = as_variables(at.outer)
    return gradient(at.inner_loss(detach(inner), a), a)


def _inner_slope(at: Instance, inner: Tree) -> Tree:
    """df/dw at constant a."""
    w = as_variables(inner)
    return gradient(at.inner_loss(w, detach(at.outer)), w)
