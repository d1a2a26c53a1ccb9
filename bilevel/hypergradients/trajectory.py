"""Unrolls that choose or mix what they differentiate: pessimistic truncation and aggregated descent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bilevel.hypergradients.base import checked_batches
from bilevel.hypergradients.inner_steps import (
    Start,
    check_optimizer,
    check_steps,
    run_plain,
    starting_point,
)
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.inner_optimizers import OptimizerLike
from bilevel.problem import BilevelProblem, evaluate
from bilevel.results import Hypergradient
from bilevel.tree import Tree, detach


@dataclass(frozen=True)
class PessimisticUnrolled:
    """`Unrolled` with as many steps as make the outer loss largest: K = argmax over t in 1..T of F(w_t(a), a).

    Minimising the worst point of the trajectory bounds F at its end, without assuming that the inner problem is convex.
    Cost: T plain steps and T values of F, then K unrolled steps.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        start: see `Unrolled`.

    Source: Liu et al. (IAPTT, NeurIPS 2021), pessimistic trajectory truncation; with `start` also its initialisation.
    """

    optimizer: OptimizerLike
    steps: int
    start: Start | None = None

    def __post_init__(self) -> None:
        check_steps("steps", self.steps)
        check_optimizer(self.optimizer)

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Look for the worst iterate, then unroll up to it; `stats["steps"]` is K."""
        batches = checked_batches(inner, outer, inner_batches)
        if problem.lead:
            raise ValueError("`PessimisticUnrolled` takes one problem at a time: each has its own number of steps.")
        point = starting_point(self.optimizer, inner, detach(outer), self.start)
        values = []
        for t in range(self.steps):
            point = run_plain(problem, self.optimizer, point, outer, batches, range(t, t + 1))
            with torch.no_grad():
                values.append(evaluate(problem, "outer_loss", detach(point.inner), detach(outer), outer_batch))
        worst = int(torch.stack(values).argmax()) + 1
        found = Unrolled(self.optimizer, worst, self.start)(problem, inner, outer, inner_batches, outer_batch)
        return replace(found, stats=found.stats | {"method": "pessimistic"})


@dataclass(frozen=True)
class AggregatedUnrolled:
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

    optimizer: OptimizerLike
    steps: int
    ratio: float = 0.5
    start: Start | None = None

    def __post_init__(self) -> None:
        check_steps("steps", self.steps)
        check_optimizer(self.optimizer)
        if not 0 <= self.ratio < 1:
            raise ValueError(f"`ratio` must lie in [0, 1), got {self.ratio}.")

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Unroll the mixed inner loss; see the class."""
        batches = checked_batches(inner, outer, inner_batches)

        def mixed(w: Tree, a: Tree, numbered: Any) -> Any:
            t, batch = numbered
            r = self.ratio / (t + 1)
            return (1 - r) * problem.inner_loss(w, a, batch) + r * problem.outer_loss(w, a, outer_batch)

        numbered = [(t, batches[t % len(batches)]) for t in range(self.steps)]
        aggregated = BilevelProblem(mixed, problem.outer_loss, problem.lead)
        found = Unrolled(self.optimizer, self.steps, self.start)(aggregated, inner, outer, numbered, outer_batch)
        return replace(found, stats=found.stats | {"method": "aggregated"})
