"""check_hypergradient tells right from wrong; finite differences stand for the mixed product."""

import pytest
import torch

import bilevel
from bilevel import (
    BilevelProblem,
    FiniteDifference,
    GaussNewton,
    Identity,
    Implicit,
    check_hypergradient,
    hypergradient,
)
from bilevel.tree import ravel
from tests.bilevel.test_hypergradients import logistic_problem, relative


def test_the_exact_method_passes():
    problem, w, a, batches = logistic_problem()
    method = bilevel.Unrolled(bilevel.sgd(0.3), 2)
    check = check_hypergradient(problem, w, a, batches, None, method, optimizer=bilevel.sgd(0.3), steps=2)
    assert check.cosine == pytest.approx(1.0)
    assert check.norm_ratio == pytest.approx(1.0)
    assert check.finite_difference_error < 1e-6
    assert "cosine 1.000" in check.verdict


def test_the_published_sign_is_found_out():
    """Scalar anchor: the published direction is exactly opposite, here at full length."""
    problem = BilevelProblem(lambda w, x, _: (w - 2 * x) ** 2 / 2, lambda w, x, _: (w - 0.5) ** 2 / 2)
    w, x = torch.tensor(2.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    method = GaussNewton(as_published=True, step_size=1.0)
    check = check_hypergradient(problem, w, x, [None], None, method, optimizer=bilevel.sgd(0.3), steps=30)
    assert check.cosine == pytest.approx(-1.0)
    assert "Do not follow it" in check.verdict


def test_a_large_direct_part_cannot_hide_a_wrong_indirect_one():
    problem = BilevelProblem(
        lambda w, x, _: (w - 2 * x) ** 2 / 2, lambda w, x, _: 1e-3 * (w - 0.5) ** 2 / 2 + (x + 9) ** 2
    )
    w, x = torch.tensor(2.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    method = GaussNewton(as_published=True, step_size=1.0)
    check = check_hypergradient(problem, w, x, [None], None, method, optimizer=bilevel.sgd(0.3), steps=30)
    assert check.cosine > 0.99
    assert check.indirect_cosine == pytest.approx(-1.0)
    assert "hides it" in check.verdict


def test_an_impure_loss_is_found_out():
    generator = torch.Generator().manual_seed(0)
    problem = BilevelProblem(
        lambda w, x, _: (w - x).square().sum(),
        lambda w, x, _: (w * torch.randn(3, generator=generator, dtype=torch.float64)).sum(),
    )
    w, x = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    check = check_hypergradient(
        problem, w, x, [None], None, bilevel.Unrolled(bilevel.sgd(0.1)), optimizer=bilevel.sgd(0.1)
    )
    assert "not a pure function" in check.verdict


def test_finite_difference_is_the_one_step_form_and_its_error_falls_as_radius_squared():
    problem, w, a, batches = logistic_problem()
    exact = hypergradient(problem, w, a, batches, None, Implicit(Identity(0.3), warn=False))
    errors = [
        relative(hypergradient(problem, w, a, batches, None, FiniteDifference(0.3, radius)).indirect, exact.indirect)
        for radius in (2e-2, 1e-2)
    ]
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_finite_difference_at_a_stationary_outer_loss_is_zero():
    problem = BilevelProblem(lambda w, x, _: (w * x).sum(), lambda w, x, _: (0 * w).sum())
    found = hypergradient(problem, torch.ones(2), torch.ones(2), [None], None, FiniteDifference(0.1))
    assert torch.equal(ravel(found.value), torch.zeros(2))
    with pytest.raises(ValueError, match="`radius`"):
        FiniteDifference(0.1, 0.0)


def test_an_unsolved_system_and_negative_curvature_stand_in_the_verdict():
    problem, w, a, batches = logistic_problem()
    for solver, words in (
        (bilevel.ConjugateGradient(1, damping=50.0), "was not solved"),
        (bilevel.ConjugateGradient(50), "negative curvature"),
    ):
        check = check_hypergradient(
            problem, w, a, batches, None, Implicit(solver, warn=False), optimizer=bilevel.sgd(0.3), steps=2
        )
        assert words in check.verdict
        assert check.residual_norm > 0
    unrolled = bilevel.Unrolled(bilevel.sgd(0.3), 2)
    check = check_hypergradient(problem, w, a, batches, None, unrolled, optimizer=bilevel.sgd(0.3), steps=2)
    assert check.residual_norm != check.residual_norm
