"""Spectral normalisation: its singular vectors are constants of a hypergradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import BilevelTrainer, Unrolled, hypergradient, parameters_of, problem_from_modules
from bilevel.spectral_norm import power_iterations
from bilevel.tree import ravel
from tests.bilevel.methods import EXACT

SAMPLES = 6
KINDS = {"parametrised": nn.utils.parametrizations.spectral_norm, "hook": nn.utils.spectral_norm}


def modules(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(KINDS[kind](nn.Linear(4, 6)), nn.Softplus(), KINDS[kind](nn.Linear(6, 3))).double()
        weights = nn.Linear(1, SAMPLES, bias=False).double()
        x, y = torch.randn(2, SAMPLES, 4, dtype=torch.float64), torch.randint(0, 3, (2, SAMPLES))
    model(x[0])  # the older kind begins with random vectors

    def inner(m, a, _):
        return (a.weight[:, 0].sigmoid() * F.cross_entropy(m(x[0]), y[0], reduction="none")).mean()

    return model, weights, inner, lambda m, a, _: F.cross_entropy(m(x[1]), y[1])


@pytest.mark.parametrize("kind", KINDS)
def test_unrolls_through_spectral_normalisation_are_exact(kind):
    model, weights, inner, outer = modules(kind)
    problem = problem_from_modules(model, weights, inner, outer)
    w, a = parameters_of(model), parameters_of(weights)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    rule, h = bilevel.sgd(0.3, momentum=0.9), 1e-4

    def run(method, shift=0.0):
        return hypergradient(problem, w, {"weight": a["weight"] + shift}, [None], None, method)

    full = run(Unrolled(rule, 3))
    values = [float(run(Unrolled(rule, 3), k * h).outer_loss) for k in (-2, -1, 1, 2)]
    difference = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
    # Rounding of a loss of order one over h is 2e-12; with power iterations the two are 1e-3 apart.
    assert float(full.value["weight"].sum()) == pytest.approx(difference, rel=1e-7)
    for make in EXACT.values():
        assert float((ravel(run(make(rule, 3)).value) - ravel(full.value)).norm() / ravel(full.value).norm()) < 1e-12
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [part.n_power_iterations for part in power_iterations(model)] == [1, 1]


def test_training_steps_go_on_improving_the_vectors():
    model, weights, inner, outer = modules("parametrised")
    before = {name: x.clone() for name, x in model.named_buffers()}
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=inner,
        outer_loss=outer,
        inner_batches=[None],
        outer_batches=[None],
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.1),
        outer_optimizer=torch.optim.SGD(weights.parameters(), 0.1),
        progress=False,
    )
    trainer.fit(1)
    assert not any(torch.equal(x, before[name]) for name, x in model.named_buffers())


def test_only_modules_with_spectral_normalisation_pay_for_it():
    assert not power_iterations(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
