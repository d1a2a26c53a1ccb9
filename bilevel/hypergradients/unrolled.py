"""Hypergradients by reverse mode through the steps of an inner optimizer: through all of them, or the last ones."""

from dataclasses import dataclass
from typing import Any

from bilevel.hypergradients.base import Method, assemble, require_counts
from bilevel.hypergradients.inner_steps import Point, Start, Stepping, inner_step, run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike, bind
from bilevel.results import Hypergradient
from bilevel.tree import Tree, as_variables, vector_jacobian


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
