"""Batched problems: what a loop would give, in one call."""

import pytest
import torch

import bilevel
from bilevel import (
    GMRES,
    MINRES,
    BilevelProblem,
    ConjugateGradient,
    EvolutionStrategies,
    ForwardUnrolled,
    HypergradientWarning,
    Implicit,
    Unrolled,
    batched,
    hypergradient,
)
from bilevel.batched import stack_trees, unstack_trees
from tests.bilevel.test_every_method import PROBLEMS, tasks
from tests.bilevel.test_hypergradients import relative


def test_one_setting_of_the_hyperparameters_per_problem():
    """Learning rate and decay as `(problems,)` outer variables; the data is shared."""
    problem, w, a, inner_batches, outer_batch = tasks()
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
    problem, w, a, inner_batches, outer_batch = tasks()
    args = stack_trees(w), stack_trees(a), [stack_trees(inner_batches[0])], stack_trees(outer_batch)
    with pytest.raises(ValueError, match="at a time"):
        hypergradient(batched(problem), *args, method)
    with pytest.raises(ValueError, match="batched already"):
        batched(batched(problem))
