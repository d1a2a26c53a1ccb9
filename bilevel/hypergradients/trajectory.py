"""Unrolls that choose or mix what they differentiate: pessimistic truncation and aggregated descent."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from bilevel.hypergradients.base import Method
from bilevel.hypergradients.inner_steps import Start, Stepping, run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.results import Hypergradient
from bilevel.tree import Tree, detach


@dataclass(frozen=True)
class PessimisticUnrolled(Method, Stepping):
    """`Unrolled` with as many steps as make the outer loss largest: K = argmax over t in 1..T of F(w_t(a), a).

    Minimising the worst point of the trajectory bounds F at its end, without assuming that the inner problem is convex.
    Cost: T plain steps and T values of F, then K unrolled steps.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        start: see `Unrolled`.

    Source: Liu et al. (IAPTT, NeurIPS 2021), pessimistic trajectory truncation; with `start` also its initialisation.
    """

    start: Start | None = None

    def estimate(self, at: Instance) -> Hypergradient:
        """Look for the worst iterate, then unroll up to it; `stats["steps"]` is K."""
        at.require_one_problem(self)
        _, outer = at.constants()
        point = starting_point(self.optimizer, at.inner, outer, self.start)
        values = []
        for t in range(self.steps):
            point = run_plain(at, self.optimizer, point, range(t, t + 1))
            with torch.no_grad():
                values.append(at.outer_loss(detach(point.inner), outer))
        worst = int(torch.stack(values).argmax()) + 1
        found = Unrolled(self.optimizer, worst, self.start).estimate(at)
        return replace(found, stats=found.stats | {"method": "pessimistic"})


@dataclass(frozen=True)
class AggregatedUnrolled(Method, Stepping):
    """`Unrolled` whose inner steps also descend the outer loss: they follow `(1 - r_t) df/dw + r_t dF/dw`.

    Where the inner problem has many minima this leads to one that is good for F; with `r_t = ratio / (t + 1)` its
    influence fades and the limit is a minimum of f. Cost: one gradient of F more per inner step.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        ratio: r_0 in [0, 1); 0 is `Unrolled`.
        start: see `Unrolled`.

    Source: Liu et al. (BDA, ICML 2020), bilevel descent aggregation.
    """

    ratio: float = 0.5
    start: Start | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise ValueError(f"`ratio` must lie in [0, 1), got {self.ratio}.")

    def estimate(self, at: Instance) -> Hypergradient:
        """Unroll the mixed inner loss; see the class."""

        def mixed(w: Tree, a: Tree, numbered: Any) -> Any:
            t, batch = numbered
            r = self.ratio / (t + 1)
            return (1 - r) * at.problem.inner_loss(w, a, batch) + r * at.problem.outer_loss(w, a, at.outer_batch)

        numbered = [(t, at.batch(t)) for t in range(self.steps)]
        aggregated = replace(at, problem=replace(at.problem, inner_loss=mixed), inner_batches=numbered)
        found = Unrolled(self.optimizer, self.steps, self.start).estimate(aggregated)
        return replace(found, stats=found.stats | {"method": "aggregated"})
