"""The one list of hypergradient methods and the one of linear solvers: a row here buys every test over all of them.

`test_every_method.py` and `test_linear_solvers.py` fail for a public class without a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import bilevel
from bilevel import (
    BOME,
    F2SA,
    GMRES,
    MESO,
    MINRES,
    SAMA,
    AggregatedUnrolled,
    CheckpointedUnrolled,
    ConjugateGradient,
    Dense,
    EvolutionStrategies,
    FiniteDifference,
    FixedPoint,
    ForwardUnrolled,
    Identity,
    Implicit,
    Neumann,
    NextStep,
    Nystrom,
    PessimisticUnrolled,
    RankOneGaussNewton,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
    WarmStart,
)


@dataclass(frozen=True)
class Row:
    """A method with settings for a small smooth problem in float64, and what may be expected of it.

    Attributes:
        make: makes the method for inner variables that are a dict of tensors.
        batched: it takes many problems side by side; None where the row's settings are those of one problem.
        carries: it has a state to carry from call to call.
        homogeneous: its value scales with the outer loss.
        moves: it returns inner variables of its own.
        uses_all: outer variables that no loss uses have a hypergradient, or must lie in a plain dict.
        trains: a trainer can use it on a network.
    """

    make: Callable[[dict[str, Any]], Any]
    batched: bool | None = True
    carries: bool = False
    homogeneous: bool = True
    moves: bool = False
    uses_all: bool = False
    trains: bool = True


def _implicit(solver):
    return lambda w: Implicit(solver, warn=False)


def _next_step(w):
    parameters = {name: x.detach().clone().requires_grad_() for name, x in w.items()}
    return NextStep(torch.optim.SGD(parameters.values(), 0.1), parameters)


def _shrink(w, a, batch):
    return {name: 0.9 * x + 0.01 * sum(y.sum() for y in a.values()) for name, x in w.items()}


METHODS = {
    "unrolled": Row(lambda w: Unrolled(bilevel.adam(0.05), 3)),
    "unrolled, momentum": Row(lambda w: Unrolled(bilevel.sgd(0.05, momentum=0.9), 3)),
    "next step": Row(_next_step, batched=None),
    "truncated": Row(lambda w: TruncatedUnrolled(bilevel.sgd(0.05), 3, 2)),
    "checkpointed": Row(lambda w: CheckpointedUnrolled(bilevel.adam(0.05), 4)),
    "recomputed": Row(lambda w: RecomputedUnrolled(bilevel.adam(0.05), 5, "reverse")),
    "recomputed, forward": Row(lambda w: RecomputedUnrolled(bilevel.adam(0.05), 5, "forward"), carries=True),
    "forward": Row(lambda w: ForwardUnrolled(bilevel.sgd(0.05), 3), batched=False),
    "pessimistic": Row(lambda w: PessimisticUnrolled(bilevel.sgd(0.1), 2), batched=False),
    "aggregated": Row(lambda w: AggregatedUnrolled(bilevel.sgd(0.1), 2), homogeneous=False),
    "implicit, cg": Row(_implicit(ConjugateGradient(30, rtol=1e-9, damping=2.0))),
    "implicit, three steps of cg": Row(_implicit(ConjugateGradient(3, damping=2.0))),
    "implicit, neumann": Row(_implicit(Neumann(5, 0.05))),
    "implicit, identity": Row(_implicit(Identity(0.1))),
    "implicit, dense": Row(_implicit(Dense())),
    "implicit, nystrom": Row(_implicit(Nystrom(4, 0.1)), batched=False),
    "implicit, warm": Row(_implicit(WarmStart(ConjugateGradient(3, damping=2.0))), carries=True),
    "fixed point": Row(lambda w: FixedPoint(_shrink), batched=None, uses_all=True, trains=False),
    "fixed point, warm": Row(
        lambda w: FixedPoint(_shrink, WarmStart(GMRES(1))), batched=None, carries=True, uses_all=True, trains=False
    ),
    "rank-one gauss-newton": Row(lambda w: RankOneGaussNewton(warn=False)),
    "finite difference": Row(lambda w: FiniteDifference(0.1)),
    "sama": Row(lambda w: SAMA(bilevel.sgd(0.1))),
    "f2sa": Row(lambda w: F2SA(bilevel.sgd(0.05), 3, growth=0.5), carries=True, homogeneous=False, moves=True),
    "bome": Row(lambda w: BOME(bilevel.sgd(0.05), 3), homogeneous=False),
    "bome, moving": Row(lambda w: BOME(bilevel.sgd(0.05), 3, step_size=0.1), homogeneous=False, moves=True),
    "meso": Row(lambda w: MESO(rounds=2), carries=True, homogeneous=False, moves=True),
    "evolution strategies": Row(
        lambda w: EvolutionStrategies(bilevel.sgd(0.1), 1, pairs=2), batched=False, uses_all=True
    ),
}


EXACT = {
    "checkpointed": lambda o, t, **k: CheckpointedUnrolled(o, t, **k),
    "recomputed": lambda o, t, **k: RecomputedUnrolled(o, t, **k),
    "recomputed-reverse": lambda o, t, **k: RecomputedUnrolled(o, t, "reverse", **k),
    "recomputed-forward": lambda o, t, **k: RecomputedUnrolled(o, t, "forward", **k),
    "forward": lambda o, t, **k: ForwardUnrolled(o, t, **k),
}
"""`name: (optimizer, steps, **options) -> method`: the same value as `Unrolled` with any start, state or optimizer."""

EXACT_FROM_A_POINT = EXACT | {
    "truncated, all kept": lambda o, t: TruncatedUnrolled(o, t, last=t),
    "aggregated, ratio 0": lambda o, t: AggregatedUnrolled(o, t, ratio=0.0),
}
"""The same, and settings of other methods at which they become `Unrolled`; these take no start."""

ANOTHER_LENGTH = {"pessimistic": lambda o, t: PessimisticUnrolled(o, t)}
"""Equal to `Unrolled` with as many steps as `stats["steps"]` says."""

FULL = Unrolled


@dataclass(frozen=True)
class SolverRow:
    """A linear solver with settings for six unknowns and eigenvalues from 1 to 3.

    Attributes:
        solver: it.
        side_by_side: it takes systems of shape `(problems, n)`.
        damping: what it adds to the diagonal.
        error: relative error of its answer, at most, in float64.
    """

    solver: Any
    side_by_side: bool = False
    damping: float = 0.0
    error: float = 1e-9


SOLVERS = {
    "cg": SolverRow(ConjugateGradient(50), side_by_side=True),
    "cg, damped": SolverRow(ConjugateGradient(50, damping=0.5), side_by_side=True, damping=0.5),
    "minres": SolverRow(MINRES(50)),
    "minres, damped": SolverRow(MINRES(50, damping=0.5), damping=0.5),
    "gmres": SolverRow(GMRES(50)),
    "gmres, damped": SolverRow(GMRES(50, damping=0.5), damping=0.5),
    "dense": SolverRow(Dense(), side_by_side=True),
    "neumann": SolverRow(Neumann(400, 0.3), side_by_side=True),
    # (1 - 0.5 * 3) = -0.5 and (1 - 0.5 * 1) = 0.5: half of the error stays, whatever b is.
    "identity": SolverRow(Identity(0.5, rtol=2.0), side_by_side=True, error=0.5),
    "nystrom": SolverRow(Nystrom(rank=6, damping=1e-3, rtol=0.1), damping=1e-3, error=1e-9),
    "warm start": SolverRow(WarmStart(ConjugateGradient(50)), side_by_side=True),
}
