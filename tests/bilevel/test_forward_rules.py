"""Second derivatives through normalisation layers by forward mode, and what guards every other forward rule."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    BilevelProblem,
    HypergradientWarning,
    RecomputedUnrolled,
    Unrolled,
    batched,
    directional_derivative,
    hypergradient,
    parameters_of,
    problem_from_modules,
)
from bilevel.forward_rules import DifferentiableNormalisation
from bilevel.tree import leaves
from tests.bilevel.test_hypergradients import logistic_problem, relative

NORMALISATIONS = {
    "batch": lambda: nn.BatchNorm1d(3),
    "batch, bare": lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
    "batch, cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "batch, eval": lambda: nn.BatchNorm1d(3).eval(),
    "instance": lambda: nn.InstanceNorm1d(3),
    "instance, affine": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    "instance, eval": lambda: nn.InstanceNorm1d(3, track_running_stats=True).eval(),
    "layer": lambda: nn.LayerNorm(5),
    "layer, no bias": lambda: nn.LayerNorm((3, 5), bias=False),
    "layer, bare": lambda: nn.LayerNorm(5, elementwise_affine=False),
    "group": lambda: nn.GroupNorm(3, 3),
    "rms": lambda: nn.RMSNorm(5),
}


def layer_and_input(name, dtype=torch.float64):
    torch.manual_seed(0)
    layer = NORMALISATIONS[name]().to(dtype)
    for p in layer.parameters():
        nn.init.normal_(p, 1.0, 0.3)
    return layer, torch.randn(4, 3, 5, dtype=dtype) + 2


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_directional_derivative_can_be_differentiated_again(name):
    """d/dx of the derivative of f along v is H v: against reverse over reverse and against finite differences."""
    layer, x = layer_and_input(name)
    v, weights = torch.randn_like(x), torch.randn_like(x)

    def f(x):
        z = layer(x)
        return (weights * z + z.pow(3)).sum()

    def slope(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(f(at), at, create_graph=True)[0], at

    g, at = slope(x)
    reverse = torch.autograd.grad(g, at, v)[0] if g.requires_grad else torch.zeros_like(x)
    h = 1e-5
    difference = (slope(x + h * v)[0] - slope(x - h * v)[0]).detach() / (2 * h)
    variable = x.clone().requires_grad_()
    # Module buffers would be changed inside the transform, so they travel as values, as in `problem_from_modules`.
    buffers = {k: b.clone() for k, b in layer.named_buffers()}
    state = {k: b.clone() for k, b in buffers.items()}

    def pure(x):
        for k, b in state.items():
            buffers[k] = b.clone()
        z = torch.func.functional_call(layer, buffers, (x,))
        return (weights * z + z.pow(3)).sum()

    _, along = directional_derivative(pure, (variable,), (v,))
    forward = torch.autograd.grad(along, variable)[0]
    assert float((forward - reverse).norm()) < 1e-12 * float(reverse.norm())
    assert float((difference - reverse).norm()) < 1e-7 * float(reverse.norm())  # h^2 and eps / h


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float64, False),
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float32, True),
        (torch.bfloat16, True),
    ],
)
def test_composed_layers_return_what_the_kernels_return(name, dtype, autocast):
    found = []
    for composed in (False, True):
        layer, x = layer_and_input(name, torch.float32 if autocast else dtype)
        x = x.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for _ in range(2):
                if composed:
                    with DifferentiableNormalisation():
                        out = layer(x)
                else:
                    out = layer(x)
        found.append((out.detach(), [b.clone() for b in layer.buffers()]))
    (kernel, buffers), (own, own_buffers) = found
    assert own.dtype == kernel.dtype
    # Sums of 20 numbers near 2 in another order: some eps; in bfloat16 the result is rounded once.
    bound = 20 * torch.finfo(kernel.dtype).eps
    assert torch.allclose(own.double(), kernel.double(), rtol=bound, atol=bound)
    for a, b in zip(own_buffers, buffers, strict=True):
        bound = 20 * torch.finfo(b.dtype).eps if b.is_floating_point() else 0
        assert a.dtype == b.dtype
        assert torch.allclose(a.double(), b.double(), rtol=bound, atol=bound)


def normalised_problem(name, early=False):
    """Weighted losses of a net with one kind of normalisation; `early` outer variables act before it."""
    torch.manual_seed(0)
    layer = NORMALISATIONS[name]()
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), layer, nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)).double()
    model[1].train(layer.training)
    weights = nn.Linear(1, 6, bias=False).double()
    x, y = torch.randn(6, 2, 5).double(), torch.randint(0, 3, (6,))

    def inner(m, a, _):
        each = a.weight[:, 0].sigmoid()
        if early:
            return F.cross_entropy(m(each[:, None, None] * x), y)
        return (each * F.cross_entropy(m(x), y, reduction="none")).mean()

    problem = problem_from_modules(model, weights, inner, lambda m, a, _: F.cross_entropy(m(x.flip(0)), y))
    return problem, parameters_of(model), parameters_of(weights)


@pytest.mark.parametrize("products", ["forward", "auto"])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_recomputed_unrolls_are_exact_with_every_normalisation(name, early, products):
    problem, w, a = normalised_problem(name, early)
    method = RecomputedUnrolled(bilevel.sgd(0.1), 3, products)
    full = hypergradient(problem, w, a, [None], None, Unrolled(bilevel.sgd(0.1), 3))
    state = None
    for _ in range(3):  # compared, timed, settled
        found = hypergradient(problem, w, a, [None], None, method, state=state)
        state = found.state
        assert relative(found.value, full.value) < 1e-12
    if products == "forward":
        assert found.stats["products"] == "forward"


def test_batched_problems_take_forward_products_through_normalisation():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=g, dtype=torch.float64)

    def inner(w, a, _):
        return (a.sigmoid() * F.layer_norm(x * w, (4,)).pow(3).sum(1)).mean() + (w * w).sum()

    problem = batched(BilevelProblem(inner, lambda w, a, _: (w * w * w).sum()), batch_dim=None)
    w, a = (torch.randn(3, n, generator=g, dtype=torch.float64) for n in (4, 7))
    full = hypergradient(problem, w, a, [None], None, Unrolled(bilevel.sgd(0.1), 3))
    method = RecomputedUnrolled(bilevel.sgd(0.1), 3, "forward")
    state = None
    for _ in range(2):
        found = hypergradient(problem, w, a, [None], None, method, state=state)
        state = found.state
        assert relative(found.value, full.value) < 1e-12
    assert found.stats["products"] == "forward"


class SlightlyWrong(torch.autograd.Function):
    """The cube, whose forward-mode rule takes a factor for a constant: right once, wrong when differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * t


@pytest.mark.parametrize("products", ["forward", "auto"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_forward_rule_that_is_wrong_when_differentiated_is_not_used(products, steps):
    """Whatever the operation is: both products are compared before the forward one is trusted."""
    problem, w, a, batches = logistic_problem()
    odd = BilevelProblem(
        lambda w, a, b: problem.inner_loss({k: SlightlyWrong.apply(a["logit"].mean() + v) for k, v in w.items()}, a, b),
        problem.outer_loss,
    )
    full = hypergradient(odd, w, a, batches, None, Unrolled(bilevel.sgd(0.1), steps))
    method = RecomputedUnrolled(bilevel.sgd(0.1), steps, products)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state = None
        for _ in range(4):
            found = hypergradient(odd, w, a, batches, None, method, state=state)
            state = found.state
            assert relative(found.value, full.value) < 1e-12
            assert found.stats["products"] == "reverse"
    given_up = [x for x in said if issubclass(x.category, HypergradientWarning)]
    # Said once for each kind of product (the first step needs no Hessian), and only to whom it concerns.
    assert len(given_up) == min(steps, 2) * (products == "forward")
    assert all("away from the reverse one" in str(x.message) for x in given_up)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_products_of_a_zero_vector_are_no_comparison():
    """At a stationary point of F both products are zero, and a wrong forward rule would be trusted for good."""
    problem, w, a, batches = logistic_problem()
    odd = BilevelProblem(
        lambda w, a, b: problem.inner_loss({k: SlightlyWrong.apply(a["logit"].mean() + v) for k, v in w.items()}, a, b),
        lambda w, a, on: problem.outer_loss(w, a, None) * on,
    )
    method = RecomputedUnrolled(bilevel.sgd(0.1), 3, "forward")
    flat = hypergradient(odd, w, a, batches, 0.0, method)
    assert not any(x.any() for x in leaves(flat.value))
    state = flat.state
    full = hypergradient(odd, w, a, batches, 1.0, Unrolled(bilevel.sgd(0.1), 3))
    for _ in range(2):
        found = hypergradient(odd, w, a, batches, 1.0, method, state=state)
        state = found.state
        assert relative(found.value, full.value) < 1e-12
