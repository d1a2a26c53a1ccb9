"""Losses whose derivative would be wrong or lost without a word: each is right, or refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import bilevel
from bilevel import (
    BilevelProblem,
    CheckpointedUnrolled,
    ConjugateGradient,
    ForwardUnrolled,
    Implicit,
    RankOneGaussNewton,
    RecomputedUnrolled,
    Unrolled,
    hypergradient,
    parameters_of,
    problem_from_modules,
)
from tests.bilevel.test_hypergradients import logistic_problem, relative

SGD = bilevel.sgd(0.5)


class Net(nn.Module):
    """Two blocks, of which the first may be evaluated under a checkpoint."""

    def __init__(self, how):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.last = nn.Linear(8, 3)
        self.how = how

    def forward(self, x):
        return self.last(self.first(x) if self.how is None else checkpoint(self.first, x, use_reentrant=self.how))


def checkpointed_problem(how):
    torch.manual_seed(0)
    model, weights = Net(how).double(), nn.Linear(1, 6, bias=False).double()
    x, y = torch.randn(6, 5).double(), torch.randint(0, 3, (6,))

    def inner(m, a, _):
        return (a.weight[:, 0].sigmoid() * F.cross_entropy(m(x), y, reduction="none")).mean()

    problem = problem_from_modules(model, weights, inner, lambda m, a, _: F.cross_entropy(m(x.flip(0)), y))
    return problem, parameters_of(model), parameters_of(weights)


@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("method", [Unrolled(SGD, 2), RecomputedUnrolled(SGD, 2), RankOneGaussNewton()])
def test_activation_checkpointing_in_a_loss_over_modules_is_refused(how, method):
    """Its recomputation sees the module's own parameters: 3 % wrong at five steps, 16 % for the reentrant kind."""
    problem, w, a = checkpointed_problem(how)
    with pytest.raises(RuntimeError, match="cannot use activation checkpointing"):
        hypergradient(problem, w, a, [None], None, method)


def test_hooks_on_saved_tensors_around_the_whole_call_are_right():
    problem, w, a = checkpointed_problem(None)
    plain = hypergradient(problem, w, a, [None], None, Unrolled(SGD, 2))
    with torch.autograd.graph.save_on_cpu():
        saved = hypergradient(problem, w, a, [None], None, Unrolled(SGD, 2))
    assert relative(saved.value, plain.value) < 1e-14


@pytest.mark.parametrize(
    "method", [Unrolled(SGD, 3), RecomputedUnrolled(SGD, 3, "reverse"), Implicit(ConjugateGradient(3), warn=False)]
)
def test_activation_checkpointing_in_a_pure_loss_is_right(method):
    g = torch.Generator().manual_seed(0)
    x, first, last = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((6, 5), (5, 8), (8, 3)))
    w, a, y = {"first": first, "last": last}, torch.linspace(-1, 1, 6, dtype=torch.float64), torch.arange(6) % 3

    def problem(checkpointed):
        def net(x, first, last):
            return torch.tanh(torch.tanh(x @ first) @ last)

        def inner(w, a, _):
            z = checkpoint(net, x, *w.values(), use_reentrant=False) if checkpointed else net(x, *w.values())
            return (a.sigmoid() * F.cross_entropy(z, y, reduction="none")).mean()

        return BilevelProblem(inner, lambda w, a, _: F.cross_entropy(net(x.flip(0), *w.values()), y))

    plain, saving = (hypergradient(problem(c), w, a, [None], None, method) for c in (False, True))
    assert relative(saving.value, plain.value) < 1e-12


def test_an_outer_loss_under_no_grad_is_refused():
    problem, w, a, batches = logistic_problem()
    constant = BilevelProblem(problem.inner_loss, torch.no_grad()(problem.outer_loss))
    for method in (Unrolled(SGD), RankOneGaussNewton(), Implicit(ConjugateGradient())):
        with pytest.raises(ValueError, match="`outer_loss` depends neither"):
            hypergradient(constant, w, a, batches, None, method)


def test_a_hypergradient_inside_a_loss_is_refused_unless_it_is_said_to_be_constant():
    problem, w, a, batches = logistic_problem()

    def nested(w, a, batch):
        inside = hypergradient(problem, w, a, batches, None, Unrolled(SGD))
        return (inside.value["logit"] * a["logit"]).sum()

    with pytest.raises(RuntimeError, match="called inside a loss"):
        hypergradient(BilevelProblem(problem.inner_loss, nested), w, a, batches, None, Unrolled(SGD))
    inside = hypergradient(problem, w, a, batches, None, RankOneGaussNewton()).value["logit"]

    def outer(w, a, batch):
        with torch.no_grad():
            constant = hypergradient(problem, start, a, batches, None, RankOneGaussNewton()).value["logit"]
        return (constant * a["logit"]).sum()

    start = w
    one = BilevelProblem(lambda w, a, _: w["b"].square().sum(), outer)
    found = hypergradient(one, w, a, [None], None, Unrolled(SGD))
    assert relative(found.value["logit"], inside) < 1e-14


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_renormalises_its_weight_is_refused_before_it_does(kind):
    torch.manual_seed(0)
    model, weights = nn.Sequential(kind(5, 3, max_norm=0.1), nn.Linear(3, 1)), nn.Linear(1, 1)
    index = torch.tensor([[0, 1], [2, 4]])
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def loss(m, a, _):
        return a.weight.sum() * m(index).square().mean()

    problem = problem_from_modules(model, weights, loss, loss)
    with pytest.raises(ValueError, match=r"'0' has max_norm=0.1"):
        hypergradient(problem, parameters_of(model), parameters_of(weights), [None], None, Unrolled(SGD))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_loss_that_changes_a_variable_without_a_gradient_is_named():
    def loss(w, a, _):
        return a.sum() * F.embedding(torch.tensor([0, 1]), w, max_norm=0.1).square().sum()

    w = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="`inner_loss` has changed one of its variables in place"):
        hypergradient(BilevelProblem(loss, loss), w, torch.ones(1), [None], None, Unrolled(SGD))


ATTENTIVE = [
    Unrolled(SGD, 2),
    CheckpointedUnrolled(SGD, 2, 1),
    RecomputedUnrolled(SGD, 2, "reverse"),
    RecomputedUnrolled(SGD, 2, "forward"),
    ForwardUnrolled(SGD, 2),
]


def attention_problem(backend=None):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True).double()
    weights, x = nn.Linear(1, 4, bias=False).double(), torch.randn(4, 3, 6).double()

    def predict(m, x):
        if backend is None:
            return m(x)
        with sdpa_kernel(backend):
            return m(x)

    problem = problem_from_modules(
        model,
        weights,
        lambda m, a, _: (a.weight[:, 0].sigmoid() * predict(m, x).pow(2).mean((1, 2))).mean(),
        lambda m, a, _: m(x.flip(0)).pow(3).mean(),
    )
    return problem, parameters_of(model), parameters_of(weights)


@pytest.mark.parametrize("method", ATTENTIVE, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'products', '')}")
def test_attention_takes_the_kernel_that_has_second_derivatives(method):
    problem, w, a = attention_problem()
    found = hypergradient(problem, w, a, [None], None, method)
    composed, *_ = attention_problem(SDPBackend.MATH)
    wanted = hypergradient(composed, w, a, [None], None, Unrolled(SGD, 2))
    assert relative(found.value, wanted.value) < 1e-12
    assert torch.backends.cuda.flash_sdp_enabled()  # outside, everything is as it was


def test_a_fused_kernel_that_the_loss_insists_on_is_named():
    problem, w, a = attention_problem(SDPBackend.FLASH_ATTENTION)
    with pytest.raises(RuntimeError, match=r"leave out the sdpa_kernel"):
        hypergradient(problem, w, a, [None], None, Unrolled(SGD, 2))


@pytest.mark.parametrize(
    "method", [Unrolled(SGD), RecomputedUnrolled(SGD, 1), ForwardUnrolled(SGD, 1), RankOneGaussNewton()]
)
def test_sparse_gradients_are_named(method):
    model, weights = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1)), nn.Linear(1, 1)
    index = torch.tensor([0, 1, 4])

    def loss(m, a, _):
        return a.weight.sum() * m(index).square().mean()

    problem = problem_from_modules(model, weights, loss, loss)
    with pytest.raises(TypeError, match="sparse=False"):
        hypergradient(problem, parameters_of(model), parameters_of(weights), [None], None, method)


def test_complex_numbers_are_named():
    problem = BilevelProblem(lambda w, a, _: (w * a).abs().sum(), lambda w, a, _: w.abs().sum())
    with pytest.raises(TypeError, match="view_as_real"):
        hypergradient(problem, torch.ones(2, dtype=torch.complex64), torch.ones(2), [None], None, Unrolled(SGD))
    for lead in (0, 1):
        odd = BilevelProblem(lambda w, a, _: (w * a * 1j).sum(), lambda w, a, _: w.sum(), lead)
        with pytest.raises(ValueError, match="returned a complex number"):
            hypergradient(odd, torch.ones(2), torch.ones(2), [None], None, Unrolled(SGD))


@pytest.mark.parametrize("method", [ForwardUnrolled(bilevel.sgd(0.1), 2), RecomputedUnrolled(bilevel.sgd(0.1), 2)])
def test_scalars_as_inner_variables(method):
    """w' = w - 0.1 (w - 3 a): after two steps dw/da = 0.3 (1 + 0.9), and F = (w - 1)^2 / 2."""
    problem = BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
    w, a = torch.tensor(6.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    found = hypergradient(problem, w, a, [None], None, method)
    assert float(found.value) == pytest.approx((6.0 - 1) * 0.57, rel=1e-14)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Recurrent(), (5, 6, 3)), (nn.Sequential(nn.Linear(3, 4), nn.RReLU(), nn.Linear(4, 1)), (5, 3))],
    ids=["LSTM in float32 on a CPU", "RReLU"],
)
def test_operations_without_a_forward_rule_are_named_and_the_other_methods_take_them(model, shape):
    weights, x = nn.Linear(1, 5, bias=False), torch.randn(shape)
    problem = problem_from_modules(
        model,
        weights,
        lambda m, a, _: (a.weight.sigmoid() * (m(x) - 1).square()).mean(),
        lambda m, a, _: m(x).square().mean(),
    )
    w, a = parameters_of(model), parameters_of(weights)
    with pytest.raises(NotImplementedError, match=r"`ForwardUnrolled` met an operation.*use RecomputedUnrolled or Unr"):
        hypergradient(problem, w, a, [None], None, ForwardUnrolled(SGD, 2))
    for method in (Unrolled(SGD, 2), RecomputedUnrolled(SGD, 2, "reverse")):
        assert bool(hypergradient(problem, w, a, [None], None, method).value["weight"].any())
