"""Every exact unroll equals the full one, also with learned optimizers, learned starts and warm states."""

import pytest
import torch
from torch import nn

import bilevel
from bilevel import (
    ForwardUnrolled,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
    from_torch,
    hypergradient,
    parameters_of,
    problem_from_modules,
)
from bilevel.problem import BilevelProblem
from bilevel.products import reverse_over_forward, reverse_over_reverse
from bilevel.tree import as_variables, leaves, map_leaves, ravel
from tests.bilevel.methods import EXACT
from tests.bilevel.test_hypergradients import OPTIMIZERS, logistic_problem, relative


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_all_exact_unrolls_agree(make, name, steps):
    """The same derivative in another order of operations: equal to rounding in float64 (1e-12 for some 1e3 terms)."""
    optimizer = OPTIMIZERS[name][1]
    problem, w, a, batches = logistic_problem()
    full = hypergradient(problem, w, a, batches, None, Unrolled(optimizer, steps))
    other = hypergradient(problem, w, a, batches, None, make(optimizer, steps))
    assert relative(other.value, full.value) < 1e-12
    assert float(other.outer_loss) == pytest.approx(float(full.outer_loss), rel=1e-13)
    for fact in ("inner_loss", "inner_gradient_norm"):
        assert float(other.stats[fact]) == pytest.approx(float(full.stats[fact]), rel=1e-12)


def learned_problem():
    """The inner problem with hyperparameters of its optimizer, and its start, among the outer variables."""
    problem, w, a, batches = logistic_problem()
    scalar = {"lr": 0.05, "momentum": 0.7, "decay": 0.02}
    a = a | {k: torch.tensor(v, dtype=torch.float64) for k, v in scalar.items()}
    a["start"] = {k: v.clone() for k, v in w.items()}
    return problem, w, a, batches


def start(inner, outer):
    return outer["start"]


LEARNED = {
    "momentum": (
        lambda a: bilevel.sgd(a["lr"], momentum=a["momentum"], weight_decay=a["decay"]),
        lambda p, a: torch.optim.SGD(p, a["lr"], momentum=a["momentum"], weight_decay=a["decay"]),
    ),
    "adam": (
        lambda a: bilevel.adam(a["lr"], betas=(a["momentum"], 0.99), weight_decay=a["decay"]),
        lambda p, a: torch.optim.Adam(p, a["lr"], betas=(a["momentum"], 0.99), weight_decay=a["decay"]),
    ),
    "adamw": (
        lambda a: bilevel.adamw(a["lr"], betas=(0.9, a["momentum"]), weight_decay=a["decay"]),
        lambda p, a: torch.optim.AdamW(p, a["lr"], betas=(0.9, a["momentum"]), weight_decay=a["decay"]),
    ),
}


def moved(tree, direction, h):
    flat = ravel(tree) + h * direction
    return bilevel.tree.unravel(flat, tree)


@pytest.mark.parametrize("name", LEARNED)
def test_hyperparameters_and_start_as_outer_variables_match_finite_differences(name):
    """Along a random direction in weights, learning rate, momentum, decay and initialisation together."""
    learned, real = LEARNED[name]
    problem, w, a, batches = learned_problem()
    direction = torch.randn(ravel(a).numel(), generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value(h):
        outer = moved(a, direction, h)
        params = {k: v.clone().requires_grad_() for k, v in outer["start"].items()}
        number = {k: float(v) for k, v in outer.items() if k in ("lr", "momentum", "decay")}
        optimizer = real(list(params.values()), number)
        for t in range(4):
            optimizer.zero_grad()
            problem.inner_loss(params, outer, batches[t % 2]).backward()
            optimizer.step()
        return float(problem.outer_loss(params, outer, None).detach())

    found = hypergradient(problem, w, a, batches, None, Unrolled(learned, 4, start=start))
    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    assert float(ravel(found.value) @ direction) == pytest.approx(difference, rel=1e-6)
    assert all(bool(found.value[k] != 0) for k in ("lr", "momentum", "decay"))


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("name", LEARNED)
def test_all_exact_unrolls_agree_on_learned_optimizers_and_starts(make, name):
    problem, w, a, batches = learned_problem()
    full = hypergradient(problem, w, a, batches, None, Unrolled(LEARNED[name][0], 5, start=start))
    other = hypergradient(problem, w, a, batches, None, make(LEARNED[name][0], 5, start=start))
    assert relative(other.value, full.value) < 1e-12


def test_a_start_that_is_also_used_by_the_loss_is_differentiated_in_both_places():
    """iMAML's proximal inner loss: dF/da has a part through the start and one through the loss."""
    problem = BilevelProblem(lambda w, a, _: ((w - 1) ** 2).sum() + ((w - a) ** 2).sum(), lambda w, a, _: w.sum())
    w, a = torch.zeros(2, dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64)
    found = hypergradient(problem, w, a, [None], None, Unrolled(bilevel.sgd(0.1), 1, start=lambda w, a: a))
    # w1 = a - 0.1 (2 (a - 1) + 2 (a - a)); the second term's derivative in a at fixed w is -2, in w +2: 0.8 in all
    assert torch.allclose(found.value, torch.full_like(a, 0.8))


def test_a_start_of_another_shape_is_refused():
    problem, w, a, batches = learned_problem()
    with pytest.raises(ValueError, match="structure and shapes"):
        hypergradient(problem, w, a, batches, None, Unrolled(bilevel.sgd(0.1), start=lambda w, a: a["logit"]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [*EXACT.values(), Unrolled], ids=[*EXACT, "full"])
def test_an_unroll_goes_on_from_a_running_torch_optimizer(make, name):
    """Three real steps, then three differentiated ones from its state: finite differences of the last three."""
    problem, w, a, batches = logistic_problem()
    real = OPTIMIZERS[name][0]

    def run(outer, resumed=None):
        params = {k: v.clone().requires_grad_() for k, v in w.items()}
        optimizer = real(list(params.values()))
        middle = None
        for t in range(6):
            optimizer.zero_grad()
            problem.inner_loss(params, a if t < 3 else outer, batches[(t + 1) % 2]).backward()
            optimizer.step()
            if t == 2:
                rule, state = from_torch(optimizer, params)
                middle = {k: v.detach().clone() for k, v in params.items()}, rule, state
        return float(problem.outer_loss(params, outer, None).detach()), middle

    value, (at, rule, state) = run(a)
    found = hypergradient(problem, at, a, batches, None, make(rule, 3, state=state))
    assert float(found.outer_loss) == pytest.approx(value, rel=1e-12)
    direction = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    h = 1e-3
    f = {k: run({"logit": a["logit"] + k * h * direction})[0] for k in (-2, -1, 1, 2)}
    difference = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
    assert float(found.value["logit"] @ direction) == pytest.approx(difference, rel=1e-6)


def test_a_truncated_unroll_takes_a_warm_state_too():
    problem, w, a, batches = logistic_problem()
    rule = bilevel.adam(0.05)
    state = rule.init(w)
    state = state._replace(mean={k: 0.1 * torch.ones_like(v) for k, v in w.items()}, step=3)
    warm = hypergradient(problem, w, a, batches, None, TruncatedUnrolled(rule, 3, 3, state=state))
    full = hypergradient(problem, w, a, batches, None, Unrolled(rule, 3, state=state))
    cold = hypergradient(problem, w, a, batches, None, Unrolled(rule, 3))
    assert relative(warm.value, full.value) < 1e-13
    assert relative(cold.value, full.value) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.RMSprop(p), "SGD, Adam or AdamW"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1), "dampening"),
        (lambda p: torch.optim.SGD(p[:1], 0.1), "does not update"),
    ],
)
def test_optimizers_without_a_twin_are_named(make, message):
    params = {"a": torch.zeros(1, requires_grad=True), "b": torch.zeros(1, requires_grad=True)}
    with pytest.raises(ValueError, match=message):
        from_torch(make(list(params.values())), params)


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_an_operation_without_forward_mode_falls_back_to_reverse():
    problem, w, a, batches = logistic_problem()
    odd = BilevelProblem(
        lambda w, a, b: problem.inner_loss({k: NoForward.apply(v) for k, v in w.items()}, a, b), problem.outer_loss
    )
    full = hypergradient(odd, w, a, batches, None, Unrolled(bilevel.sgd(0.1), 3))
    found = hypergradient(odd, w, a, batches, None, RecomputedUnrolled(bilevel.sgd(0.1), 3))
    assert relative(found.value, full.value) < 1e-12


def test_forward_mode_refuses_many_outer_numbers():
    problem, w, a, batches = logistic_problem()
    with pytest.raises(ValueError, match="max_outer"):
        hypergradient(problem, w, a, batches, None, ForwardUnrolled(bilevel.sgd(0.1), 1, max_outer=5))


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("method", ["full", "recomputed"])
def test_adam_in_float32_stays_near_the_float64_truth(steps, decay, method):
    """Digits-like: dead inputs, so exact zeros among second moments."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(200, 64, generator=g, dtype=torch.float64).round(decimals=1)
    x[:, ::7] = 0.0
    y = (x @ torch.randn(64, 10, generator=g, dtype=torch.float64)).argmax(1)
    y[:80] = torch.randint(0, 10, (80,), generator=g)

    def net(w, x):
        return torch.relu(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]

    def make(dtype):
        data = x.to(dtype)
        problem = BilevelProblem(
            lambda w, a, _: (a.sigmoid() * torch.nn.functional.cross_entropy(net(w, data), y, reduction="none")).mean(),
            lambda w, a, _: torch.nn.functional.cross_entropy(net(w, data[80:]), y[80:]),
        )
        g = torch.Generator().manual_seed(1)
        shapes = {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}
        w = {k: (torch.randn(s, generator=g, dtype=torch.float64) * 0.1).to(dtype) for k, s in shapes.items()}
        rule = bilevel.adam(1e-3, weight_decay=decay)
        exact = Unrolled(rule, steps) if method == "full" else RecomputedUnrolled(rule, steps, "reverse")
        return hypergradient(problem, w, torch.zeros(200, dtype=dtype), [None], None, exact).value.double()

    truth, found = make(torch.float64), make(torch.float32)
    assert found.isfinite().all()
    assert relative(found, truth) < 5e-4
    assert len(leaves(truth)) == 1


@pytest.mark.parametrize("product", [reverse_over_reverse, reverse_over_forward])
def test_a_mixed_product_alone_is_that_of_the_pair(product):
    problem, w, a, batches = logistic_problem()

    def loss(w, a):
        return problem.inner_loss(w, a, batches[0])

    vector = map_leaves(torch.ones_like, w)
    variables = as_variables(w), as_variables(a)
    _, expected = product(loss, *variables, vector)
    bent, found = product(loss, *variables, vector, hessian=False)
    assert bent is None
    assert relative(found, expected) < 1e-12


def test_forward_mode_draws_the_dropout_masks_of_the_unroll():
    model, weight = (
        nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.4), nn.Tanh(), nn.Linear(6, 1)),
        nn.Linear(1, 5, bias=False),
    )
    model, weight = model.double(), weight.double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = problem_from_modules(
        model, weight, lambda m, a, x: (a.weight[:, 0] * m(x)[:, 0].square()).mean(), lambda m, a, x: m(x).mean()
    )
    found = []
    for method in (Unrolled(bilevel.sgd(0.1), 3), ForwardUnrolled(bilevel.sgd(0.1), 3)):
        torch.manual_seed(1)
        found.append(hypergradient(problem, parameters_of(model), parameters_of(weight), [x], x, method).value)
    assert relative(found[1], found[0]) < 1e-12
