"""Every hypergradient against a closed form, another method, or finite differences. All in float64."""

import pytest
import torch
import torchopt
from hypothesis import given, settings
from hypothesis import strategies as st

import bilevel
from bilevel import (
    BilevelProblem,
    ConjugateGradient,
    Dense,
    HypergradientWarning,
    Implicit,
    Neumann,
    RankOneGaussNewton,
    Unrolled,
    hypergradient,
)
from bilevel.tree import leaves, ravel
from tests.bilevel.cases import CASES, quadratic


def relative(found, wanted):
    return float((ravel(found) - ravel(wanted)).norm() / ravel(wanted).norm())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(
    # CG and LU solve to rounding: 1e-10 leaves room for a condition number of 1e3 at eps 2e-16.
    "solver",
    [ConjugateGradient(max_iter=100, rtol=1e-13), Dense()],
    ids=["cg", "dense"],
)
def test_implicit_equals_the_closed_form(case, solver):
    found = hypergradient(case.problem, case.inner, case.outer, [None], None, Implicit(solver))
    assert relative(found.value, case.exact) < 1e-10
    assert bool(found.stats["converged"])
    assert float(found.stats["minimum_curvature"]) > 0
    assert float(found.stats["inner_gradient_norm"]) < 1e-10  # the cases stand at the inner solution


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_neumann_and_unrolled_converge_to_the_closed_form(case):
    step = 1 / case.largest_curvature
    neumann = hypergradient(case.problem, case.inner, case.outer, [None], None, Implicit(Neumann(3000, step)))
    unrolled = hypergradient(case.problem, case.inner, case.outer, [None], None, Unrolled(bilevel.sgd(step), 600))
    assert relative(neumann.value, case.exact) < 1e-8
    assert relative(unrolled.value, case.exact) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_k_neumann_terms_are_k_unrolled_steps_at_the_solution(case, steps):
    """Identity for gradient descent at df/dw = 0, where all K steps see the same Hessian; holds to rounding."""
    step = 0.7 / case.largest_curvature
    method = Implicit(Neumann(steps, step), warn=False)
    neumann = hypergradient(case.problem, case.inner, case.outer, [None], None, method)
    unrolled = hypergradient(case.problem, case.inner, case.outer, [None], None, Unrolled(bilevel.sgd(step), steps))
    assert relative(neumann.value, unrolled.value) < 1e-9


def test_cg_is_exact_in_n_steps_and_not_before():
    case = quadratic(n=6)
    errors = [
        relative(
            hypergradient(
                case.problem, case.inner, case.outer, [None], None, Implicit(ConjugateGradient(k, 0.0), warn=False)
            ).value,
            case.exact,
        )
        for k in (3, 6)
    ]
    assert errors[0] > 1e-6
    assert errors[1] < 1e-10


def test_scalar_anchor_of_both_signs():
    """f = a/2 (w - b x)^2, F = (w - c)^2/2: dF/dx = b(w - c) for every w != b x; the published sign is opposite."""
    a, b, c, eta = 3.0, 2.0, 0.5, 1e-2
    problem = BilevelProblem(lambda w, x, _: a / 2 * (w - b * x) ** 2, lambda w, x, _: (w - c) ** 2 / 2)
    for value in (-1.0, 0.3, 5.0):
        w, x = torch.tensor(value, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
        ours = hypergradient(problem, w, x, [None], None, RankOneGaussNewton())
        published = hypergradient(problem, w, x, [None], None, RankOneGaussNewton(as_published=True, step_size=eta))
        assert float(ours.value) == pytest.approx(b * (value - c), rel=1e-12)
        assert float(published.value) == pytest.approx(-eta * b * (value - c), rel=1e-12)
    at_solution = hypergradient(problem, 2.0 * x, x, [None], None, RankOneGaussNewton())
    assert bool(at_solution.stats["degenerate"])
    assert float(at_solution.indirect) == 0.0  # 0/0: said to be degenerate, not infinite


def test_scalar_system_with_cg():
    """f = (2w - x)^2 / 2, F = w: dw/dx = 1/2."""
    problem = BilevelProblem(lambda w, x, _: (2 * w - x) ** 2 / 2, lambda w, x, _: w)
    w, x = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert float(hypergradient(problem, w, x, [None], None, "conjugate_gradient").value) == pytest.approx(0.5)


def logistic_problem(seed=0):
    """A small MLP with per-sample weights; batches are index sets of one data set."""
    g = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(24, 4, generator=g, dtype=torch.float64) for _ in range(2))
    y, t = ((torch.rand(24, generator=g) > 0.5).double() for _ in range(2))
    x[:, 0] = 0.0  # a dead input: its weights never get a gradient

    def net(w, v):
        return (torch.tanh(v @ w["a"]) @ w["b"]).squeeze(-1)

    def inner(w, a, batch):
        losses = torch.nn.functional.binary_cross_entropy_with_logits(net(w, x[batch]), y[batch], reduction="none")
        return (a["logit"][batch].sigmoid() * losses).mean() + 0.01 * (w["b"] ** 2).sum()

    def outer(w, a, _):
        return torch.nn.functional.binary_cross_entropy_with_logits(net(w, z), t) + 1e-3 * (a["logit"] ** 2).sum()

    w = {
        "a": torch.randn(4, 3, generator=g, dtype=torch.float64),
        "b": torch.randn(3, 1, generator=g, dtype=torch.float64),
    }
    a = {"logit": 0.5 * torch.randn(24, generator=g, dtype=torch.float64)}
    return BilevelProblem(inner, outer), w, a, [torch.arange(12), torch.arange(12, 24)]


def unrolled_value(problem, w, a, batches, optimizer, steps):
    """F after T real updates, without any graph: what finite differences are taken of."""
    w = {k: v.clone() for k, v in w.items()}
    params = [v.requires_grad_() for v in w.values()]
    optimizer = optimizer(params)
    for t in range(steps):
        optimizer.zero_grad()
        problem.inner_loss(w, a, batches[t % len(batches)]).backward()
        optimizer.step()
    return float(problem.outer_loss(w, a, None).detach())


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.3), bilevel.sgd(0.3)),
    "momentum": (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        bilevel.sgd(0.1, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        bilevel.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "ascent": (lambda p: torch.optim.SGD(p, 0.01, maximize=True), bilevel.sgd(0.01, maximize=True)),
    "adam": (lambda p: torch.optim.Adam(p, 0.05), bilevel.adam(0.05)),
    "adam+l2": (
        lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
        bilevel.adam(0.05, weight_decay=0.1),
    ),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1), bilevel.adamw(0.05, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unrolled_matches_finite_differences_of_torch_optim(name, steps):
    """Directional derivative of F(w_T(a)) by the 4th-order central difference of the real torch optimizer.

    Its error is O(h^4) truncation and O(eps/h) rounding; at h = 1e-3 both stay below 1e-7 of these derivatives.
    A dead input keeps some second moments at exactly zero (no NaN, no guard).
    """
    reference, ours = OPTIMIZERS[name]
    problem, w, a, batches = logistic_problem()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = hypergradient(problem, w, a, batches, None, Unrolled(ours, steps)).value["logit"]
    assert found.isfinite().all()
    h = 1e-3
    f = {
        k: unrolled_value(problem, w, {"logit": a["logit"] + k * h * direction}, batches, reference, steps)
        for k in (-2, -1, 1, 2)
    }
    difference = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
    assert float(found @ direction) == pytest.approx(difference, rel=1e-6)


def test_finite_difference_error_falls_as_step_squared():
    problem, w, a, batches = logistic_problem()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = hypergradient(problem, w, a, batches, None, Unrolled(bilevel.adam(0.05), 3)).value["logit"] @ direction
    errors = []
    for h in (4e-2, 2e-2):
        f = [
            unrolled_value(
                problem, w, {"logit": a["logit"] + s * h * direction}, batches, lambda p: torch.optim.Adam(p, 0.05), 3
            )
            for s in (-1, 1)
        ]
        errors.append(abs((f[1] - f[0]) / (2 * h) - float(found)))
    assert 3.0 < errors[0] / errors[1] < 5.0  # 4 in the limit


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(torchopt.sgd(0.2, momentum=0.5), bilevel.sgd(0.2, momentum=0.5)), (torchopt.sgd(0.2), bilevel.sgd(0.2))],
)
def test_torchopt_transformations_are_accepted_as_they_are(theirs, ours):
    problem, w, a, batches = logistic_problem()
    one = hypergradient(problem, w, a, batches, None, Unrolled(theirs, 4))
    two = hypergradient(problem, w, a, batches, None, Unrolled(ours, 4))
    assert relative(one.value, two.value) < 1e-12


def test_learning_rate_as_an_outer_variable():
    problem, w, a, batches = logistic_problem()

    def value(lr):
        return unrolled_value(problem, w, a, batches, lambda p: torch.optim.SGD(p, lr), 4)

    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    params = {k: v.clone().requires_grad_() for k, v in w.items()}
    optimizer = bilevel.sgd(lr)
    state = optimizer.init(params)
    for t in range(4):
        grads = bilevel.tree.gradient(problem.inner_loss(params, a, batches[t % 2]), params, create_graph=True)
        updates, state = optimizer.update(grads, state, params=params)
        params = {k: params[k] + updates[k] for k in params}
    found = torch.autograd.grad(problem.outer_loss(params, a, None), lr)[0]
    h = 1e-5
    assert float(found) == pytest.approx((value(0.3 + h) - value(0.3 - h)) / (2 * h), rel=1e-6)


def test_an_indefinite_inner_problem_warns_and_says_so():
    problem = BilevelProblem(lambda w, a, _: a * w[0] ** 2 - w[1] ** 2, lambda w, a, _: (w - 1).square().sum())
    w, a = 2 * torch.ones(2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    with pytest.warns(HypergradientWarning, match="curvature"):
        found = hypergradient(problem, w, a, [None], None, Implicit(ConjugateGradient()))
    assert not bool(found.stats["converged"])
    assert float(found.stats["minimum_curvature"]) < 0


def test_an_unsolved_system_warns():
    case = quadratic(condition=1e4)
    with pytest.warns(HypergradientWarning, match="not solved"):
        found = hypergradient(
            case.problem, case.inner, case.outer, [None], None, Implicit(ConjugateGradient(max_iter=2))
        )
    assert not bool(found.stats["converged"])
    assert found.stats["iterations"] == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inner_loss": lambda w, a, b: w}, ValueError, "reduce it"),
        ({"inner_loss": lambda w, a, b: 1.0}, TypeError, "must return a tensor"),
        ({"inner_loss": lambda w, a, b: a.sum() * 0 + w.detach().sum()}, ValueError, None),
        ({"inner": {}}, ValueError, "empty tree"),
        ({"outer": torch.arange(3)}, TypeError, "floating point"),
        ({"method": "no such"}, ValueError, "known ones"),
        ({"inner_batches": []}, ValueError, "needs at least"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {
        "inner_loss": lambda w, a, b: (w - a).square().sum(),
        "inner": torch.zeros(3),
        "outer": torch.zeros(3),
        "inner_batches": [None],
        "method": Unrolled(bilevel.sgd(0.1)),
    } | change
    problem = BilevelProblem(given["inner_loss"], lambda w, a, b: w.square().sum())
    if message is None:  # detached by mistake but not constant: a zero inner gradient, and so a zero indirect term
        found = hypergradient(problem, given["inner"], given["outer"], [None], None, given["method"])
        assert torch.equal(found.indirect, torch.zeros(3))
        return
    with pytest.raises(error, match=message):
        hypergradient(problem, given["inner"], given["outer"], given["inner_batches"], None, given["method"])


def test_a_torch_optimizer_is_refused_as_an_inner_rule():
    with pytest.raises(TypeError, match="cannot be"):
        Unrolled(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    n=st.integers(1, 6),
    m=st.integers(1, 4),
    condition=st.floats(1, 50),
    seed=st.integers(0, 1000),
    nested=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shapes_trees_dtypes_and_conditioning(n, m, condition, seed, nested, dtype):
    """The quadratic's closed form in float64; errors grow with the condition number times the precision."""
    case = quadratic(n, m, condition, seed)

    def unwrap(tree):
        return torch.cat([x.reshape(-1) for x in leaves(tree)]).double()

    def wrap(x):
        x = x.to(dtype)
        return {"first": x[:1].reshape(1, 1), "rest": (x[1:],)} if nested else x

    problem = BilevelProblem(
        lambda w, a, b: case.problem.inner_loss(unwrap(w), unwrap(a), b),
        lambda w, a, b: case.problem.outer_loss(unwrap(w), unwrap(a), b),
    )
    tolerance = 200 * condition * torch.finfo(dtype).eps
    scale = max(1.0, float(case.exact.norm()))
    for solver in (ConjugateGradient(20 * n, 1e-12), Dense()):
        found = hypergradient(problem, wrap(case.inner), wrap(case.outer), [None], None, Implicit(solver, warn=False))
        assert all(x.dtype == dtype for x in leaves(found.value))
        assert float((unwrap(found.value) - case.exact).norm()) < tolerance * scale * 10


def test_higher_agrees_on_sgd_with_momentum():
    """An independent implementation, right for SGD (not for Adam: see the module docstring of inner_optimizers)."""
    higher = pytest.importorskip("higher")
    problem, w, a, batches = logistic_problem()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Parameter(w["a"].clone()), torch.nn.Parameter(w["b"].clone())

    net, outer = Net(), {"logit": a["logit"].clone().requires_grad_()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    with higher.innerloop_ctx(net, optimizer) as (functional, inner):
        for t in range(4):
            inner.step(problem.inner_loss({"a": functional.a, "b": functional.b}, outer, batches[t % 2]))
        loss = problem.outer_loss({"a": functional.a, "b": functional.b}, outer, None)
        theirs = torch.autograd.grad(loss, outer["logit"])[0]
    ours = hypergradient(problem, w, a, batches, None, Unrolled(OPTIMIZERS["momentum"][1], 4))
    assert relative(ours.value, {"logit": theirs}) < 1e-12
