"""Reverse mode with one inner graph at a time: exact, and small in memory for any number of steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from bilevel.hypergradients.base import StatefulMethod, assemble, require_dependence
from bilevel.hypergradients.inner_steps import (
    Point,
    Start,
    StepFacts,
    Stepping,
    as_leaves,
    starting_point,
    tensors_of,
    zero_cotangents,
)
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.product_choice import PRODUCTS, ProductChoice, Trial, new_trial
from bilevel.hypergradients.repetition import RandomState, device_of, warn_if_not_repeated
from bilevel.inner_optimizers import OptimizerLike, Transformation, apply_updates, bind
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add, as_variables, detach, gradient, leaves, rebuild, vector_jacobian, zeros_like


class Trials(TypedDict):
    """State of `RecomputedUnrolled`: of the products with H and the mixed derivative, and of those with it alone."""

    whole: Trial
    mixed: Trial


@dataclass(frozen=True)
class RecomputedUnrolled(StatefulMethod, Stepping):
    """The same value as `Unrolled`, with the memory of one inner graph and T gradients.

    That is less where the activations of a step outweigh its parameters, as in convolutional nets; where the parameters
    do (`benchmarks/hypergradient_memory.py`), `Unrolled` itself keeps no more than a few copies of them per step.

    The forward sweep takes T plain steps and keeps every gradient g_t = df/dw(w_t, a), and the point (w_t, s_t) at
    every sqrt(T)-th step. The backward sweep replays a segment's points from the gradients (elementwise, no loss is
    evaluated) and then pulls the adjoints (u, r) of (w, s) through one step at a time: with (w', s') = step(w, s, g),

        gamma = u' dw'/dg + r' ds'/dg,    u <- u' dw'/dw + r' ds'/dw + H gamma,    r <- u' dw'/ds + r' ds'/ds,

    where `H gamma` and `(d2f / da dw) gamma` come from one recomputed product. Cost: a plain step, a recomputed
    gradient and a second-order product per inner step. Nobody asks for the adjoint of a given start, so the first step
    needs `(d2f / da dw) gamma` alone: with T = 1 and weights on the losses as outer variables, `forward` products are
    the cheapest exact one-step unroll of convolutional nets with normalisation (`benchmarks/weight_costs.py`).

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        products: `reverse` (reverse over reverse: quick on small dense nets), `forward` (reverse over forward: quick on
            convolutions with normalisation), or `auto`: the first backward steps compare and time both, and what was
            quicker stays. Forward products that are not equal to the reverse ones to rounding (see `ProductChoice`), or
            that some operation does not offer, are not used. The outcome is the state of the method (`hypergradient`);
            without it every call compares anew. As the two differ by rounding, fix one where runs must repeat bit for
            bit. `stats["products"]` names the one that was used.
        start: see `Unrolled`.
        state: see `Unrolled`.

    Raises:
        ValueError: if a setting is impossible, or the inner loss does not depend on the inner variables.

    Warns:
        HypergradientWarning: if `products="forward"` had to be given up, or the inner loss does not repeat itself.

    Source: Maclaurin, Duvenaud and Adams (2015) for the adjoint; the replay from gradients needs no reversible step.
    """

    products: str = "auto"
    start: Start | None = None
    state: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.products not in ("auto", *PRODUCTS):
            raise ValueError(f"`products` must be auto, {' or '.join(PRODUCTS)}, got {self.products!r}.")

    def init(self) -> Trials | None:
        """Both kinds of products are still to be compared; None where there is no choice."""
        return None if self.products == "reverse" else {"whole": new_trial(), "mixed": new_trial()}

    def estimate(self, at: Instance, state: Trials | None) -> Hypergradient:
        """Sweep forwards, then backwards; see the class."""
        a = as_variables(at.outer)
        beginning = starting_point(self.optimizer, at.inner, a, self.start, self.state)
        sweep = _Sweep(at, self.optimizer, self.steps)
        final = sweep.forward(as_leaves(beginning))
        outer_part = at.outer_gradients(final.inner)
        choices = {
            whole: ProductChoice(self.products, state and state["whole" if whole else "mixed"])
            for whole in (True, False)
        }
        cotangents, indirect = sweep.backward(
            zero_cotangents(final, outer_part.inner), choices, through_start=self.start is not None
        )
        if self.start is not None:
            indirect = add(indirect, vector_jacobian(beginning.inner, a, rebuild(at.inner, cotangents)))
        assert sweep.facts is not None
        used = choices[self.steps > 1 or self.start is not None].used
        stats = sweep.facts.stats("recomputed", self.steps, at.problem.lead) | {"products": used}
        after = state and Trials(whole=choices[True].trial, mixed=choices[False].trial)
        return assemble(outer_part, indirect, stats, state=after)


class _Sweep:
    """One pass forwards and one backwards over the steps of an inner optimizer."""

    def __init__(self, at: Instance, optimizer: OptimizerLike, steps: int) -> None:
        self.at, self.optimizer, self.steps = at, optimizer, steps
        self.outer = detach(at.outer)
        self.segment = max(round(math.sqrt(steps)), 1)
        self.kept: dict[int, Point] = {}
        self.history: list[Tensor] = []
        self.random: list[RandomState] = []
        self.facts: StepFacts | None = None
        self.losses: list[Tensor] = []
        self.again: dict[int, Tensor] = {}

    def forward(self, point: Point) -> Point:
        """Plain steps; one preallocated block per leaf holds the gradients (many small blocks fragment memory)."""
        rule = bind(self.optimizer, self.outer)
        self.history = [torch.empty(self.steps, *x.shape, dtype=x.dtype, device=x.device) for x in leaves(point.inner)]
        for t in range(self.steps):
            if t % self.segment == 0:
                self.kept[t] = point
            self.random.append(RandomState.capture(device_of(point.inner)))
            loss = self.at.inner_loss_at(t, point.inner, self.outer)
            require_dependence(loss)
            self.losses.append(loss.detach())
            grads = gradient(loss, point.inner)
            for block, g in zip(self.history, leaves(grads), strict=True):
                block[t] = g
            if t == self.steps - 1:
                self.facts = StepFacts(loss, grads)
            point = self._advance(rule, point, grads)
        return point

    def backward(
        self, cotangents: list[Tensor], choices: dict[bool, ProductChoice], through_start: bool
    ) -> tuple[list[Tensor], Tree]:
        """Adjoints of the first inner variables (unfinished unless `through_start`) and of the outer variables."""
        indirect = zeros_like(self.outer)
        n = len(self.history)
        rule = bind(self.optimizer, self.outer)
        for first in sorted(self.kept, reverse=True):
            points = [self.kept.pop(first)]
            for t in range(first, min(first + self.segment, self.steps) - 1):
                points.append(self._advance(rule, points[-1], self._gradient(t, points[-1])))
            for t in reversed(range(first, first + len(points))):
                point = points.pop()
                cotangents, part = self._pull_through_rule(point, t, cotangents)
                gamma = rebuild(point.inner, cotangents[:n])
                whole = through_start or t > 0
                variables = as_variables(point.inner), as_variables(self.outer)
                bent, mixed = choices[whole](self._loss(t, *variables), *variables, gamma, hessian=whole)
                own = cotangents[n : 2 * n]
                if bent is not None:
                    own = [x + h for x, h in zip(own, leaves(bent), strict=True)]
                cotangents = [*own, *cotangents[2 * n :]]
                indirect = add(indirect, mixed) if part is None else add(indirect, add(mixed, part))
        warn_if_not_repeated([self.losses[t] for t in self.again], list(self.again.values()))
        return cotangents[:n], indirect

    def _pull_through_rule(self, point: Point, t: int, cotangents: list[Tensor]) -> tuple[list[Tensor], Tree | None]:
        """Adjoints `[of g, of w, of s]` through the update rule at fixed g, and those of its own outer variables."""
        learned = not hasattr(self.optimizer, "init")
        begin = as_leaves(point)
        grads = as_variables(self._gradient(t, point))
        a = as_variables(self.outer) if learned else self.outer
        updates, state = bind(self.optimizer, a).update(grads, begin.state, params=begin.inner, inplace=False)
        end = Point(apply_updates(begin.inner, updates), state)
        sources = [*leaves(grads), *tensors_of(begin)]
        pulled = vector_jacobian(tensors_of(end), [*sources, *(leaves(a) if learned else [])], cotangents)
        part = rebuild(self.outer, pulled[len(sources) :]) if learned else None
        return pulled[: len(sources)], part

    def _advance(self, rule: Transformation, point: Point, grads: Tree) -> Point:
        with torch.no_grad():
            updates, state = rule.update(grads, point.state, params=point.inner, inplace=False)
            return as_leaves(Point(apply_updates(point.inner, updates), state))

    def _loss(self, t: int, inner: Tree, outer: Tree) -> Callable[[Tree, Tree], Tensor]:
        """The inner loss of step t, with the random numbers that it drew the first time."""

        def loss(w: Tree, a: Tree) -> Tensor:
            with self.random[t].replayed():
                value = self.at.inner_loss_at(t, w, a, second_order=True)
            if w is inner and a is outer:  # not inside a functional transform, whose values cannot leave it
                self.again[t] = value.detach()
            return value

        return loss

    def _gradient(self, t: int, like: Point) -> Tree:
        return rebuild(like.inner, [block[t] for block in self.history])
