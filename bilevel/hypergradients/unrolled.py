"""Hypergradients by reverse mode through the steps of an inner optimizer: full, truncated, recomputed."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from bilevel.hypergradients.base import Method, assemble, require_counts
from bilevel.hypergradients.inner_steps import (
    Point,
    RandomState,
    Start,
    StepFacts,
    Stepping,
    add_into,
    as_leaves,
    device_of,
    inner_step,
    run_plain,
    starting_point,
    tensors_of,
    warn_if_not_repeated,
    zero_cotangents,
)
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike, bind
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, leaves, rebuild, vector_jacobian, zeros_like


@dataclass(frozen=True)
class Unrolled(Method, Stepping):
    """Exact derivative of F(w_T(a), a), where w_T is the T-th iterate of an inner optimizer started at `inner`.

    w_{t+1} = w_t + U(df/dw(w_t, a; batch_t), s_t, w_t); the result is
    `dF/da(w_T, a) + (dw_T/da)' dF/dw(w_T, a)`, with the second term by one backward pass through all T steps.

    Cost: a gradient with its graph and one second-order product per inner step; memory of T inner graphs. The given
    inner variables are the start and stay as they are; the look-ahead is thrown away.

    Attributes:
        optimizer: a differentiable update rule (`bilevel.sgd`, `adam`, `adamw`, or a torchopt transformation), or a
            function `outer -> rule` where hyperparameters of the rule are outer variables.
        steps: T; step t uses inner batch t, cycling if fewer batches are given.
        start: `start(inner, outer) -> inner`, where the first inner variables depend on the outer ones: a learned
            initialisation (MAML) is `lambda inner, outer: outer`. None starts at `inner`.
        state: optimizer state to start with (`bilevel.from_torch` reads that of a running one); None starts afresh.

    Source: Maclaurin, Duvenaud and Adams (2015); Franceschi et al. (2017), reverse mode; Finn, Abbeel and Levine (2017)
    for the initialisation.
    """

    steps: int = 1
    start: Start | None = None
    state: Any = None

    def estimate(self, at: Instance) -> Hypergradient:
        """Unroll and differentiate; see the class."""
        a = as_variables(at.outer)
        point = starting_point(self.optimizer, at.inner, a, self.start, self.state)
        return _reverse(at, self.optimizer, point, a, range(self.steps))


@dataclass(frozen=True)
class TruncatedUnrolled(Method, Stepping):
    """Derivative through the last K of T inner steps: the first T - K are taken, but held constant.

    For an inner problem with curvature between m and L and gradient descent of step s <= 1/L, the neglected part is at
    most (1 - s m)^K times the full indirect term's bound: the bias decays geometrically in K. Every kept step is
    differentiated at its own point w_t. Cost: T - K plain steps and K unrolled ones; memory of K inner graphs.

    Attributes:
        optimizer: a differentiable update rule.
        steps: T, all inner steps.
        last: K, the differentiated ones.
        state: optimizer state to start with; None starts afresh.

    Source: Shaban et al. (2019), K-truncated back-propagation.
    """

    last: int
    state: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(last=self.last)
        if self.last > self.steps:
            raise ValueError(f"`last` must be at most `steps` (= {self.steps}), got {self.last}.")

    def estimate(self, at: Instance) -> Hypergradient:
        """Step, then unroll and differentiate; see the class."""
        kept = range(self.steps - self.last, self.steps)
        point = starting_point(self.optimizer, at.inner, at.outer, state=self.state)
        point = run_plain(at, self.optimizer, point, range(kept.start))
        return _reverse(at, self.optimizer, point, as_variables(at.outer), kept)


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


def _reverse(at: Instance, optimizer: OptimizerLike, point: Point, outer: Tree, kept: range) -> Hypergradient:
    """Differentiate through the steps `kept`, from `point` on, with respect to the variables `outer`."""
    rule = bind(optimizer, outer)
    for t in kept:
        point, facts = inner_step(at, rule, point, outer, t, create_graph=True)
    outer_part = at.outer_gradients(point.inner)
    indirect = vector_jacobian(point.inner, outer, outer_part.inner)
    name = "truncated" if kept.start else "unrolled"
    stats = facts.stats(name, kept.stop, at.problem.lead) | {"differentiated": len(kept)}
    return assemble(outer_part, indirect, stats)
