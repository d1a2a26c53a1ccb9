"""Batch normalisation in an outer loss in eval mode: stored statistics, or those of the unrolled weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import Unrolled, hypergradient, parameters_of, problem_from_modules
from bilevel.tree import ravel, unravel
from tests.bilevel.methods import EXACT
from tests.bilevel.test_hypergradients import relative

RULE = bilevel.sgd(0.5)


def problems():
    """The same losses with stored statistics and with measured ones; the outer loss is in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    weights = nn.Linear(1, 8, bias=False).double()
    x, y = 3 + 2 * torch.randn(8, 3).double(), torch.arange(8) % 2

    def inner(m, a, _):
        m.train()
        return (a.weight[:, 0].sigmoid() * F.cross_entropy(m(x), y, reduction="none")).mean()

    def outer(m, a, _):
        m.eval()
        return F.cross_entropy(m(x.flip(0)), y.flip(0))

    def statistics(m, a, _):
        m.eval()
        m(x)

    stored = problem_from_modules(model, weights, inner, outer)
    measured = problem_from_modules(model, weights, inner, outer, statistics)
    return stored, measured, model, weights, x, y


def test_stored_statistics_stay_and_measured_ones_are_those_of_the_variables():
    stored, measured, model, weights, x, y = problems()
    w, a = parameters_of(model), parameters_of(weights)
    trained = copy.deepcopy(model)
    trained[1].momentum = None  # the plain mean over batches: of one batch, its own statistics
    trained.train()(x)
    with torch.no_grad():
        expected = F.cross_entropy(trained.eval()(x.flip(0)), y.flip(0))
        assert float(measured.outer_loss(w, a, None)) == pytest.approx(float(expected), rel=1e-12)
        expected = F.cross_entropy(model.eval()(x.flip(0)), y.flip(0))
        assert float(stored.outer_loss(w, a, None)) == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(model[1].running_mean, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("name", EXACT)
def test_the_derivative_of_measured_statistics_is_part_of_the_hypergradient(name):
    _, problem, model, weights, *_ = problems()
    w, a = parameters_of(model), parameters_of(weights)
    direction = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def value(h):
        outer = unravel(ravel(a) + h * direction, a)
        return float(hypergradient(problem, w, outer, [None], None, Unrolled(RULE, 4)).outer_loss)

    h = 1e-3
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    full = hypergradient(problem, w, a, [None], None, Unrolled(RULE, 4))
    found = hypergradient(problem, w, a, [None], None, EXACT[name](RULE, 4))
    assert relative(found.value, full.value) < 1e-11
    assert float(ravel(found.value) @ direction) == pytest.approx(difference, rel=1e-7)  # h^4 and eps / h
