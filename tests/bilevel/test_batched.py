"""Batched problems: what a loop would give, in one call."""

import pytest
import torch

import bilevel
from bilevel import (
    BOME,
    F2SA,
    GMRES,
    MINRES,
    SAMA,
    BilevelProblem,
    CheckpointedUnrolled,
    ConjugateGradient,
    Dense,
    EvolutionStrategies,
    FiniteDifference,
    ForwardUnrolled,
    GaussNewton,
    HypergradientWarning,
    Identity,
    Implicit,
    Neumann,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
    WarmStart,
    batched,
    hypergradient,
)
from bilevel.batched import stack_trees, unstack_trees
from tests.bilevel.test_hypergradients import relative

PROBLEMS = 4


def make():
    """Small regressions with a learned per-sample weight and penalty, of different difficulty."""

    def net(w, x):
        return torch.tanh(x @ w["a"]) @ w["b"]

    def inner(w, a, batch):
        x, y = batch
        return (a["weight"].sigmoid() * (net(w, x) - y) ** 2).mean() + a["decay"].exp() * (w["b"] ** 2).sum()

    def outer(w, a, batch):
        x, y = batch
        return ((net(w, x) - y) ** 2).mean()

    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    w = [{"a": draw(3, 2), "b": draw(2)} for _ in range(PROBLEMS)]
    a = [{"weight": draw(6), "decay": 0.1 * draw(())} for _ in range(PROBLEMS)]
    inner_batches = [[(draw(6, 3), draw(6)) for _ in range(PROBLEMS)] for _ in range(2)]
    outer_batch = [(draw(5, 3), draw(5)) for _ in range(PROBLEMS)]
    return BilevelProblem(inner, outer), w, a, inner_batches, outer_batch


METHODS = {
    "unrolled": lambda: Unrolled(bilevel.adam(0.05), 3),
    "momentum": lambda: Unrolled(bilevel.sgd(0.05, momentum=0.9), 3),
    "truncated": lambda: TruncatedUnrolled(bilevel.sgd(0.05), 3, 2),
    "checkpointed": lambda: CheckpointedUnrolled(bilevel.adam(0.05), 4),
    "recomputed": lambda: RecomputedUnrolled(bilevel.adam(0.05), 5),
    "cg": lambda: Implicit(ConjugateGradient(30, rtol=1e-9, damping=2.0), warn=False),
    "cg-3": lambda: Implicit(ConjugateGradient(3, damping=2.0), warn=False),
    "neumann": lambda: Implicit(Neumann(5, 0.05), warn=False),
    "identity": lambda: Implicit(Identity(0.1), warn=False),
    "dense": lambda: Implicit(Dense(), warn=False),
    "warm": lambda: Implicit(WarmStart(ConjugateGradient(3, damping=2.0)), warn=False),
    "gauss_newton": lambda: GaussNewton(),
    "finite_difference": lambda: FiniteDifference(0.1),
    "sama": lambda: SAMA(bilevel.sgd(0.1)),
    "f2sa": lambda: F2SA(bilevel.sgd(0.05), 3),
    "bome": lambda: BOME(bilevel.sgd(0.05), 3),
}


@pytest.mark.parametrize("make_method", METHODS.values(), ids=METHODS)
def test_batched_equals_the_loop(make_method):
    """Equal to rounding; the stopping test of CG looks at every problem by itself."""
    problem, w, a, inner_batches, outer_batch = make()
    loop = [
        hypergradient(problem, w[i], a[i], [b[i] for b in inner_batches], outer_batch[i], make_method())
        for i in range(PROBLEMS)
    ]
    together = hypergradient(
        batched(problem),
        stack_trees(w),
        stack_trees(a),
        [stack_trees(b) for b in inner_batches],
        stack_trees(outer_batch),
        make_method(),
    )
    for one, other in zip(loop, unstack_trees(together.value), strict=True):
        assert relative(other, one.value) < 1e-9
    assert torch.allclose(together.outer_loss, torch.stack([r.outer_loss for r in loop]))
    for fact in ("inner_gradient_norm", "residual_norm", "minimum_curvature", "rho"):
        if fact in loop[0].stats:
            wanted = torch.stack([r.stats[fact] for r in loop])
            assert torch.allclose(together.stats[fact], wanted, rtol=1e-6, atol=1e-9, equal_nan=True), fact


def test_one_setting_of_the_hyperparameters_per_problem():
    """Learning rate and decay as `(problems,)` outer variables; the data is shared."""
    problem, w, a, inner_batches, outer_batch = make()
    batches = [b[0] for b in inner_batches]
    a = [x | {"lr": torch.tensor(0.01 * (i + 1), dtype=torch.float64)} for i, x in enumerate(a)]
    for rule in (
        lambda a: bilevel.sgd(a["lr"], momentum=0.5, weight_decay=a["lr"]),
        lambda a: bilevel.adamw(a["lr"], weight_decay=a["lr"]),
    ):
        method = Unrolled(rule, 3)
        loop = [hypergradient(problem, w[0], x, batches, outer_batch[0], method).value for x in a]
        stacked = stack_trees([w[0]] * PROBLEMS)
        together = hypergradient(
            batched(problem, batch_dim=None), stacked, stack_trees(a), batches, outer_batch[0], method
        )
        for one, other in zip(loop, unstack_trees(together.value), strict=True):
            assert relative(other, one) < 1e-10


def test_one_indefinite_problem_does_not_stop_the_others():
    problem = BilevelProblem(lambda w, a, b: (b * w**2).sum() - (a * w).sum(), lambda w, a, _: (w - 1).square().sum())
    curvature = torch.tensor([[1.0, 2.0], [1.0, -2.0], [3.0, 5.0]], dtype=torch.float64)
    w, a = torch.ones(3, 2, dtype=torch.float64) * 2, torch.ones(3, 2, dtype=torch.float64)
    with pytest.warns(HypergradientWarning, match="curvature"):
        found = hypergradient(batched(problem), w, a, [curvature], curvature, Implicit(ConjugateGradient()))
    assert found.stats["converged"].tolist() == [True, False, True]
    exact = 2 * (w - 1) / (2 * curvature)  # mixed derivative -I, so the indirect part is +H^-1 dF/dw
    assert torch.allclose(found.value[[0, 2]], exact[[0, 2]])


@pytest.mark.parametrize(
    "method",
    [
        Implicit(GMRES()),
        Implicit(MINRES()),
        Implicit(bilevel.Nystrom()),
        ForwardUnrolled(bilevel.sgd(0.1), 1),
        EvolutionStrategies(bilevel.sgd(0.1), 1),
        bilevel.PessimisticUnrolled(bilevel.sgd(0.1), 1),
    ],
    ids=lambda m: type(getattr(m, "solver", m)).__name__,
)
def test_methods_for_one_problem_say_so(method):
    problem, w, a, inner_batches, outer_batch = make()
    args = stack_trees(w), stack_trees(a), [stack_trees(inner_batches[0])], stack_trees(outer_batch)
    with pytest.raises(ValueError, match="at a time"):
        hypergradient(batched(problem), *args, method)
    with pytest.raises(ValueError, match="batched already"):
        batched(batched(problem))
