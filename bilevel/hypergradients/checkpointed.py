"""Reverse mode through the steps of an inner optimizer, with their graphs recomputed segment by segment."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from bilevel.hypergradients.base import Method, assemble, require_counts
from bilevel.hypergradients.inner_steps import (
    Point,
    Start,
    StepFacts,
    Stepping,
    add_into,
    as_leaves,
    inner_step,
    run_plain,
    starting_point,
    tensors_of,
    zero_cotangents,
)
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.repetition import RandomState, device_of, warn_if_not_repeated
from bilevel.inner_optimizers import bind
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, leaves, rebuild, vector_jacobian, zeros_like


@dataclass(frozen=True)
class CheckpointedUnrolled(Method, Stepping):
    """The same value as `Unrolled` in less memory: inner graphs are recomputed segment by segment.

    The forward sweep keeps (w_t, s_t) at every `every`-th step. The backward sweep takes the segments in reverse order,
    recomputes each but the last with its graph, and pulls the adjoints of w and s back through it; all global random
    generators are replayed, and a point that is not reached again is warned of. Cost: one plain step
    more per inner step than `Unrolled`; memory of `every` inner graphs and T / `every` points.

    Attributes:
        optimizer: a differentiable update rule whose state holds tensors and numbers.
        steps: T.
        every: steps per segment; None takes the rounded square root of T, which balances both kinds of memory.
        start: see `Unrolled`.
        state: see `Unrolled`.

    Source: Griewank and Walther (2000), one-level checkpointing; Franceschi et al. (2017) for hypergradients.
    """

    every: int | None = None
    start: Start | None = None
    state: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is not None:
            require_counts(every=self.every)

    def estimate(self, at: Instance) -> Hypergradient:
        """Sweep forwards, then backwards; see the class."""
        every = self.every or max(round(math.sqrt(self.steps)), 1)
        inner, outer = at.inner, at.outer
        a = as_variables(outer)
        beginning = starting_point(self.optimizer, inner, a, self.start, self.state)
        point = as_leaves(beginning)
        # Of unequal segments the first is the short one: the last is taken once, with its graph at once.
        ends = range(self.steps, 0, -every)[::-1]
        segments = [range(max(end - every, 0), end) for end in ends]
        points, random = [point], []
        for segment in segments[:-1]:
            random.append(RandomState.capture(device_of(inner)))
            points.append(run_plain(at, self.optimizer, points[-1], segment))

        def with_graph(begin: Point, segment: range) -> tuple[Point, StepFacts]:
            end, rule = begin, bind(self.optimizer, a)
            for t in segment:
                end, facts = inner_step(at, rule, end, a, t, create_graph=True)
            return end, facts

        begin = points.pop()
        after = leaves(begin.inner)
        end, facts = with_graph(begin, segments[-1])
        outer_part = at.outer_gradients(end.inner)
        stats = facts.stats("checkpointed", self.steps, at.problem.lead) | {"every": every}
        cotangents, part = _pull_back(end, begin, a, zero_cotangents(end, outer_part.inner))
        indirect = add_into(zeros_like(outer), part)
        for segment in reversed(segments[:-1]):
            begin = as_leaves(points.pop())
            first_time = after
            with random.pop().replayed():
                end, _ = with_graph(begin, segment)
            warn_if_not_repeated(first_time, leaves(end.inner))
            after = leaves(begin.inner)
            cotangents, part = _pull_back(end, begin, a, cotangents)
            indirect = add_into(indirect, part)
        if self.start is not None:
            at_start = rebuild(inner, cotangents[: len(leaves(inner))])
            indirect = add(indirect, vector_jacobian(beginning.inner, a, at_start))
        return assemble(outer_part, indirect, stats)


def _pull_back(end: Point, begin: Point, outer: Tree, cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
    """Adjoints of `begin` and of `outer` from those of `end`."""
    sources = [*tensors_of(begin), *leaves(outer)]
    pairs = [(y, v) for y, v in zip(tensors_of(end), cotangents, strict=True) if y.requires_grad]
    ys, vs = zip(*pairs, strict=True)
    grads = torch.autograd.grad(ys, sources, vs, allow_unused=True)
    n = len(sources) - len(leaves(outer))
    first = [torch.zeros_like(x) if g is None else g for x, g in zip(sources[:n], grads[:n], strict=True)]
    return first, list(grads[n:])
