"""check_hypergradient tells right from wrong; finite differences stand for the mixed product."""

import re
from dataclasses import replace

import pytest
import torch

import bilevel
from bilevel import (
    BilevelProblem,
    FiniteDifference,
    Identity,
    Implicit,
    RankOneGaussNewton,
    check_hypergradient,
    hypergradient,
)
from bilevel.checkpoint import digest, plain
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
    method = RankOneGaussNewton(as_published=True, step_size=1.0)
    check = check_hypergradient(problem, w, x, [None], None, method, optimizer=bilevel.sgd(0.3), steps=30)
    assert check.cosine == pytest.approx(-1.0)
    assert "Do not follow it" in check.verdict


def test_a_large_direct_part_cannot_hide_a_wrong_indirect_one():
    problem = BilevelProblem(
        lambda w, x, _: (w - 2 * x) ** 2 / 2, lambda w, x, _: 1e-3 * (w - 0.5) ** 2 / 2 + (x + 9) ** 2
    )
    w, x = torch.tensor(2.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    method = RankOneGaussNewton(as_published=True, step_size=1.0)
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


def many_weights(n, seed, detached=0.0, sign=1.0, dtype=torch.float64):
    """Least squares with n sample weights of which a share is detached, or whose derivative has the wrong sign."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, generator=g, dtype=dtype), torch.randn(n, generator=g, dtype=dtype)
    hidden = torch.rand(n, generator=g) < detached

    class Signed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a.clone()

        @staticmethod
        def backward(ctx, grad):
            return sign * grad

    def inner(w, a, _):
        a = Signed.apply(torch.where(hidden, a.detach(), a))
        return (a.sigmoid() * (x @ w - y) ** 2).mean()

    problem = BilevelProblem(inner, lambda w, a, _: (w - 1).square().sum())
    return problem, torch.zeros(3, dtype=dtype), torch.zeros(n, dtype=dtype)


def checked(problem, w, a, method=None, lr=0.3, **options):
    method = method or bilevel.Unrolled(bilevel.sgd(lr))
    options = {"optimizer": bilevel.sgd(lr)} | options
    return check_hypergradient(problem, w, a, [None], None, method, **options)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_of_many_weights_detached_never_passes(seed, dtype):
    broken = checked(*many_weights(20_000, seed, detached=0.5, dtype=dtype), seed=seed)
    assert "disagrees with finite differences" in broken.verdict
    assert "random signs" in broken.worst_direction
    assert "cosine 1.000" in checked(*many_weights(20_000, seed, dtype=dtype), seed=seed).verdict


@pytest.mark.parametrize("seed", range(10))
def test_a_reversed_sign_among_many_weights_never_passes(seed):
    check = checked(*many_weights(100_000, seed, sign=-1.0), seed=seed)
    assert "disagrees with finite differences" in check.verdict
    assert check.finite_difference_error == pytest.approx(2.0, rel=1e-3)


def test_a_leaf_that_is_detached_among_several_is_named():
    problem = BilevelProblem(
        lambda w, a, _: (w - a["x"] * a["y"].detach()).square().sum(), lambda w, a, _: (w - 2).square().sum()
    )
    a = {"x": torch.ones(5, dtype=torch.float64), "y": torch.full((5,), 0.5, dtype=torch.float64)}
    check = checked(problem, torch.zeros(5, dtype=torch.float64), a, lr=0.1)
    assert "on outer['y']" in check.worst_direction
    assert "detached" in check.verdict


def test_nan_in_some_directions_fails():
    """Below zero the outer loss is NaN: on one side of the random directions, not along the hypergradient."""

    def outer(w, a, _):
        return (w - 1).square().sum() + torch.where(a[0] >= 0, 0.0, float("nan"))

    problem = BilevelProblem(lambda w, a, _: (w - a).square().sum(), outer)
    a = torch.tensor([0.0, 1.0], dtype=torch.float64)
    check = checked(problem, torch.zeros(2, dtype=torch.float64), a, lr=0.1)
    assert check.finite_difference_error != check.finite_difference_error
    assert "Not finite" in check.verdict


def test_a_method_that_gives_nan_fails_by_name():
    def broken(problem, inner, outer, batches, batch):
        found = hypergradient(problem, inner, outer, batches, batch, bilevel.Unrolled(bilevel.sgd(0.3)))
        return replace(found, value=found.value * float("nan"))

    assert "method's hypergradient is not finite" in checked(*many_weights(10, 0), method=broken).verdict


def scaled(factor):
    def method(problem, inner, outer, batches, batch):
        found = hypergradient(problem, inner, outer, batches, batch, bilevel.Unrolled(bilevel.sgd(0.3)))
        return replace(found, value=factor * found.value, indirect=factor * found.indirect)

    return method


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.0, "hypergradient is exactly zero, the exact one is not"),
        (1e4, r"1e\+04 times as long. Its length is off by a factor of 1.0e\+04"),
        (1e-3, r"off by a factor of 1.0e-03"),
        (-1.0, "points against the exact derivative"),
        (1.0, r"cosine 1.000, 1 times as long\.$"),
        (1.5, r"1.5 times as long\.$"),
    ],
)
def test_length_and_sign_stand_in_the_verdict(factor, words):
    check = checked(*many_weights(10, 0), method=scaled(factor))
    assert re.search(words, check.verdict), check.verdict
    assert check.norm_ratio == pytest.approx(abs(factor))


def test_a_zero_derivative_is_called_zero():
    problem = BilevelProblem(lambda w, a, _: (w * w).sum() + 0 * a.sum(), lambda w, a, _: (w - 1).square().sum())
    given = problem, torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    check = checked(*given, lr=0.1)
    assert "no influence on the outer loss" in check.verdict
    assert "cosine" not in check.verdict


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_single_precision_does_not_blame_the_loss(seed, scale):
    """The default step suits the dtype, and rounding of the outer loss is no error."""
    problem, w, a = many_weights(200, seed, dtype=torch.float32)
    problem = replace(problem, outer_loss=lambda w, a, _: scale * (w - 1).square().sum())
    assert "cosine 1.000" in checked(problem, w, a, seed=seed).verdict


def test_a_learned_start_and_learned_rates_are_checked_too():
    problem = BilevelProblem(lambda w, a, _: (w - 2).square().sum(), lambda w, a, _: (w - 1).square().sum())
    w, a = torch.zeros(3, dtype=torch.float64), {"start": torch.ones(3, dtype=torch.float64)}

    def start(w, a):
        return a["start"] + 0 * w

    method = bilevel.Unrolled(bilevel.sgd(0.1), 3, start=start)
    check = checked(problem, w, a, method, 0.1, start=start, steps=3)
    assert check.cosine == pytest.approx(1.0)
    assert "cosine 1.000" in check.verdict
    rates = {"lr": torch.tensor(1e-3, dtype=torch.float64)}

    def learned(a):
        return bilevel.adam(a["lr"])

    check = checked(problem, w, rates, bilevel.Unrolled(learned, 3), optimizer=learned, steps=3)
    assert "cosine 1.000" in check.verdict
    assert check.finite_difference_error < 1e-6


@pytest.mark.parametrize(
    "method",
    [
        bilevel.F2SA(bilevel.sgd(0.1), 2, growth=0.5),
        bilevel.MESO(),
        Implicit(bilevel.WarmStart(bilevel.ConjugateGradient(2)), warn=False),
    ],
    ids=["f2sa", "meso", "warm start"],
)
def test_a_check_has_no_side_effects(method):
    """What a method carries, random generators, and the variables themselves; the state given is what is checked."""
    problem, w, a = many_weights(10, 0)
    state = hypergradient(problem, w, a, [None], None, method).state
    before, generator = digest(plain(state)), torch.get_rng_state()
    kept = w.clone(), a.clone()
    check = checked(problem, w, a, method, method_state=state)
    assert digest(plain(state)) == before
    assert check.norm_ratio != checked(problem, w, a, method).norm_ratio
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(w, kept[0])
    assert torch.equal(a, kept[1])


def test_dropout_is_no_fault_because_every_evaluation_draws_the_same_masks():
    problem, w, a = many_weights(50, 0)

    def dropping(w, a, batch):
        return problem.inner_loss(torch.nn.functional.dropout(w + 1, 0.5), a, batch)

    assert "cosine 1.000" in checked(replace(problem, inner_loss=dropping), w, a).verdict


def test_no_direction_at_all_is_refused():
    with pytest.raises(ValueError, match="`directions` must be at least 1, got 0"):
        checked(*many_weights(10, 0), directions=0)
