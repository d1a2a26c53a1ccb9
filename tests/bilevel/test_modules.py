"""Modules as pure functions: buffers are values, tied weights stay tied, batch norm and dropout behave."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    ConjugateGradient,
    Implicit,
    RankOneGaussNewton,
    Unrolled,
    hypergradient,
    parameters_of,
    problem_from_modules,
)
from bilevel.reweighting import TableWeights
from bilevel.tree import ravel


def weighted(model, weights, batch):
    x, y, index = batch
    return (weights(index) * F.cross_entropy(model(x), y, reduction="none")).mean()


def plain(model, weights, batch):
    x, y, _ = batch
    return F.cross_entropy(model(x), y)


def data(seed=0, n=12):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g), torch.randint(3, (n,), generator=g), torch.arange(n)


@pytest.mark.parametrize(
    "method", [Unrolled(bilevel.sgd(0.1), 3), Implicit(ConjugateGradient(3), warn=False), RankOneGaussNewton()]
)
def test_a_hypergradient_changes_no_buffer_and_no_parameter(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    weights = TableWeights.per_sample(12)
    problem = problem_from_modules(model, weights, weighted, plain)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = hypergradient(problem, parameters_of(model), parameters_of(weights), [data()], data(1), method)
    assert float(found.value["logits"].norm()) > 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in [*model.parameters(), *weights.parameters()])


def test_batch_norm_uses_batch_statistics_in_train_mode_and_running_ones_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    weights = TableWeights.per_sample(12)
    problem = problem_from_modules(model, weights, weighted, plain)
    for mode in (True, False):
        model.train(mode)
        expected = plain(nn.Sequential(*[_copy(m) for m in model]).train(mode), weights, data())
        found = problem.outer_loss(parameters_of(model), parameters_of(weights), data())
        assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)


def _copy(module):
    import copy

    return copy.deepcopy(module)


class Tied(nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 5, bias=False)
        self.b = nn.Linear(5, 5, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_tied_weights_stay_tied_through_the_unroll():
    torch.manual_seed(0)
    model, weights = Tied(), TableWeights.per_sample(12)
    x, _, index = data()
    y = torch.randint(5, (12,), generator=torch.Generator().manual_seed(1))
    problem = problem_from_modules(model, weights, weighted, plain)
    tree = parameters_of(model)
    assert list(tree) == ["a.weight"]
    found = hypergradient(
        problem, tree, parameters_of(weights), [(x, y, index)], (x, y, index), Unrolled(bilevel.sgd(0.1), 3)
    )

    def by_hand(w, logits):
        return F.cross_entropy(torch.tanh(x @ w.T) @ w.T, y, reduction="none")

    logits = torch.zeros(12, requires_grad=True)
    w = tree["a.weight"].clone().requires_grad_()
    for _ in range(3):
        loss = (bilevel.reweighting.bounded_weights(logits) * by_hand(w, logits)).mean()
        w = w - 0.1 * torch.autograd.grad(loss, w, create_graph=True)[0]
    (exact,) = torch.autograd.grad(by_hand(w, logits).mean(), logits)
    # float32: eleven digits of headroom are not there; 1e-4 relative is rounding over three steps
    assert float((found.value["logits"] - exact).norm() / exact.norm()) < 1e-4


def test_frozen_parameters_are_no_variables():
    model, weights = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), TableWeights.per_sample(12)
    model[0].requires_grad_(False)
    problem = problem_from_modules(model, weights, weighted, plain)
    found = hypergradient(
        problem, parameters_of(model), parameters_of(weights), [data()], data(1), Unrolled(bilevel.sgd(0.1))
    )
    assert set(found.inner_gradient) == {"1.weight", "1.bias"}


def test_modules_that_share_a_parameter_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="share the parameters"):
        problem_from_modules(model, nn.Sequential(model), plain, plain)


def test_ravel_and_unravel_are_inverse():
    tree = {"a": torch.randn(2, 3), "b": [torch.randn(4), torch.randn(())]}
    back = bilevel.tree.unravel(ravel(tree), tree)
    assert torch.equal(back["a"], tree["a"])
    assert torch.equal(back["b"][1], tree["b"][1])
