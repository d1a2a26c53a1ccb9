"""Truncated and recomputed unrolling against the full unroll, the identity they claim."""

import pytest
import torch

import bilevel
from bilevel import CheckpointedUnrolled, Implicit, Neumann, TruncatedUnrolled, Unrolled, hypergradient
from bilevel.tree import leaves, ravel
from tests.bilevel.cases import CASES
from tests.bilevel.test_hypergradients import OPTIMIZERS, logistic_problem, relative


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("steps", "every"), [(1, None), (5, None), (6, 2), (7, 3), (4, 10)])
def test_recomputing_gives_the_full_unroll(name, steps, every):
    """The same operations in another order: equal to rounding in float64."""
    optimizer = OPTIMIZERS[name][1]
    problem, w, a, batches = logistic_problem()
    full = hypergradient(problem, w, a, batches, None, Unrolled(optimizer, steps))
    recomputed = hypergradient(problem, w, a, batches, None, CheckpointedUnrolled(optimizer, steps, every))
    assert relative(recomputed.value, full.value) < 1e-12
    assert torch.equal(recomputed.outer_loss, full.outer_loss)
    assert float(recomputed.stats["inner_gradient_norm"]) == pytest.approx(float(full.stats["inner_gradient_norm"]))


@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncation_differentiates_the_last_steps_at_their_own_points(last):
    """K of 5 steps equal K unrolled steps from w_{5-K}; evaluating old steps at w_0 is a known defect elsewhere."""
    problem, w, a, batches = logistic_problem()
    params = {k: v.clone() for k, v in w.items()}
    for t in range(5 - last):
        with torch.enable_grad():
            leaf = {k: v.detach().requires_grad_() for k, v in params.items()}
            grads = torch.autograd.grad(problem.inner_loss(leaf, a, batches[t % 2]), leaves(leaf))
        params = {k: v.detach() - 0.3 * g for (k, v), g in zip(leaf.items(), grads, strict=True)}
    shifted = [batches[(5 - last + t) % 2] for t in range(last)]
    expected = hypergradient(problem, params, a, shifted, None, Unrolled(bilevel.sgd(0.3), last))
    found = hypergradient(problem, w, a, batches, None, TruncatedUnrolled(bilevel.sgd(0.3), 5, last))
    assert relative(found.value, expected.value) < 1e-12
    assert found.stats["differentiated"] == last


def test_truncation_of_all_steps_is_no_truncation():
    problem, w, a, batches = logistic_problem()
    full = hypergradient(problem, w, a, batches, None, Unrolled(bilevel.adam(0.05), 4))
    all_of_them = hypergradient(problem, w, a, batches, None, TruncatedUnrolled(bilevel.adam(0.05), 4, 4))
    assert torch.equal(ravel(full.value), ravel(all_of_them.value))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_bias_of_truncation_decays_and_equals_the_neumann_series_at_the_solution(case):
    step = 0.9 / case.largest_curvature
    errors = []
    for last in (2, 10, 50):
        method = TruncatedUnrolled(bilevel.sgd(step), 60, last)
        found = hypergradient(case.problem, case.inner, case.outer, [None], None, method)
        series = hypergradient(
            case.problem, case.inner, case.outer, [None], None, Implicit(Neumann(last, step), warn=False)
        )
        assert relative(found.value, series.value) < 1e-8
        errors.append(relative(found.value, case.exact))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TruncatedUnrolled(bilevel.sgd(0.1), 3, 4),
        lambda: TruncatedUnrolled(bilevel.sgd(0.1), 3, 0),
        lambda: CheckpointedUnrolled(bilevel.sgd(0.1), 0),
        lambda: CheckpointedUnrolled(bilevel.sgd(0.1), 3, 0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="must be at"):
        make()
