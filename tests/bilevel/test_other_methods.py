"""Cheap, first-order, fixed-point and zeroth-order methods against closed forms, identities and finite differences."""

import pytest
import torch
from torch.autograd.functional import hessian

import bilevel
from bilevel import (
    BOME,
    F2SA,
    GMRES,
    MESO,
    SAMA,
    AggregatedUnrolled,
    BilevelProblem,
    ConjugateGradient,
    EvolutionStrategies,
    FiniteDifference,
    FixedPoint,
    Implicit,
    Neumann,
    PessimisticUnrolled,
    Unrolled,
    WarmStart,
    hypergradient,
)
from bilevel.problem import ComposedLoss
from bilevel.tree import ravel, unravel
from tests.bilevel.cases import CASES, quadratic
from tests.bilevel.test_hypergradients import logistic_problem, relative

by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def at_solution(case, method, state=None):
    return hypergradient(case.problem, case.inner, case.outer, [None], None, method, state=state)


def one_after_the_other(case, method, n):
    """The results of n calls, each with the state of the one before."""
    state = None
    for _ in range(n):
        found = at_solution(case, method, state)
        state = found.state
        yield found


# --- fixed points ----------------------------------------------------------------------------------------------------


def descent(case, step):
    def update(w, a, batch):
        grads = bilevel.tree.gradient(case.problem.inner_loss(w, a, batch), w, create_graph=True)
        return bilevel.tree.map_leaves(lambda x, g: x - step * g, w, grads)

    return update


@by_name
def test_the_fixed_point_of_gradient_descent_has_the_closed_form(case):
    found = at_solution(case, FixedPoint(descent(case, 0.5 / case.largest_curvature)))
    assert relative(found.value, case.exact) < 1e-9
    assert float(found.stats["distance"]) < 1e-12
    assert bool(found.stats["converged"])


@by_name
def test_powers_of_the_map_are_neumann_terms(case):
    step = 0.5 / case.largest_curvature
    powers = at_solution(case, FixedPoint(descent(case, step), Neumann(7, 1.0)))
    series = at_solution(case, Implicit(Neumann(7, step), warn=False))
    assert relative(powers.value, series.value) < 1e-10


def test_a_nonsymmetric_map_heavy_ball_has_the_same_hypergradient():
    """(w, v) <- (w + m v - s df/dw, m v - s df/dw): another map with the same fixed point w*, v* = 0."""
    case = quadratic()
    s, m = 0.5 / case.largest_curvature, 0.6

    def update(pair, a, batch):
        g = bilevel.tree.gradient(case.problem.inner_loss(pair["w"], a, batch), pair["w"], create_graph=True)
        v = m * pair["v"] - s * g
        return {"w": pair["w"] + v, "v": v}

    problem = BilevelProblem(lambda p, a, b: p["w"].sum(), lambda p, a, b: case.problem.outer_loss(p["w"], a, b))
    inner = {"w": case.inner, "v": torch.zeros_like(case.inner)}
    found = hypergradient(problem, inner, case.outer, [None], None, FixedPoint(update))
    assert relative(found.value, case.exact) < 1e-9


def test_a_map_that_changes_shapes_is_refused():
    case = quadratic()
    with pytest.raises(ValueError, match="structure and shapes"):
        at_solution(case, FixedPoint(lambda w, a, b: w[:-1]))


# --- curvature of the predictions ------------------------------------------------------------------------------------


def composed_problem(nonlinear):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g, dtype=torch.float64)
    y = (torch.rand(30, generator=g) > 0.5).double()

    def predict(w, a, batch):
        return torch.tanh(x[batch] @ w["a"]) @ w["b"] if nonlinear else x[batch] @ w["a"] @ w["b"].detach()

    def loss(z, a, batch):
        losses = torch.nn.functional.binary_cross_entropy_with_logits(z, y[batch], reduction="none")
        return (a[batch].exp() * losses).mean()

    problem = BilevelProblem(ComposedLoss(predict, loss), lambda w, a, _: (w["a"] - 1).square().sum())
    w = {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in {"a": (4, 3), "b": (3,)}.items()}
    a = 0.1 * torch.randn(30, generator=g, dtype=torch.float64)
    return problem, w, a, [torch.arange(15), torch.arange(15, 30)]


def test_gauss_newton_products_equal_the_matrix():
    """G = mean over batches of J' (d2l/dz2) J, built densely from Jacobians of torch.func."""
    problem, w, a, batches = composed_problem(nonlinear=True)
    seen = {}

    def capture(matvec, b):
        seen["matrix"] = torch.stack([matvec(row) for row in torch.eye(len(b), dtype=b.dtype)])
        return ConjugateGradient(5, damping=1.0)(matvec, b)

    hypergradient(problem, w, a, batches, None, Implicit(capture, warn=False, curvature="gauss_newton"))
    flat = ravel(w)
    expected = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    for batch in batches:
        z = problem.inner_loss.predict(w, a, batch)
        jacobian = torch.func.jacrev(lambda v, b=batch: problem.inner_loss.predict(unravel(v, w), a, b))(flat)
        bent = hessian(lambda v, b=batch: problem.inner_loss.loss(v, a, b), z)
        expected += jacobian.T @ bent @ jacobian / 2
    assert torch.allclose(seen["matrix"], expected, rtol=1e-10, atol=1e-14)
    assert float(torch.linalg.eigvalsh(seen["matrix"]).min()) > -1e-12


def test_gauss_newton_is_the_hessian_where_predictions_are_linear():
    problem, w, a, batches = composed_problem(nonlinear=False)
    solver = ConjugateGradient(50, damping=1e-3)
    one = hypergradient(problem, w, a, batches, None, Implicit(solver, warn=False, curvature="gauss_newton"))
    two = hypergradient(problem, w, a, batches, None, Implicit(solver, warn=False))
    assert relative(one.value, two.value) < 1e-8


def test_a_loss_without_predictions_is_named():
    case = quadratic()
    with pytest.raises(ValueError, match="ComposedLoss"):
        at_solution(case, Implicit(ConjugateGradient(), curvature="gauss_newton"))
    with pytest.raises(ValueError, match="curvature"):
        Implicit(ConjugateGradient(), curvature="fisher")


# --- warm starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [ConjugateGradient(4), GMRES(4), Neumann(10, 0.1)], ids=["cg", "gmres", "neumann"])
def test_a_warm_start_goes_on_where_the_last_solve_ended(solver):
    """Four products a call do not solve six unknowns; the second and third call start from what the first left."""
    case = quadratic()
    warm, cold = Implicit(WarmStart(solver), warn=False), Implicit(solver, warn=False)
    errors = [relative(found.value, case.exact) for found in one_after_the_other(case, warm, 9)]
    assert errors[0] == relative(at_solution(case, cold).value, case.exact)
    assert errors[1] < errors[0]
    assert errors[-1] < 0.05 * errors[0]


def test_a_warm_start_at_the_solution_stops_at_once_and_counts_damping():
    case = quadratic()
    method = Implicit(WarmStart(ConjugateGradient(50, damping=0.3, rtol=1e-8)))
    first, again = one_after_the_other(case, method, 2)
    assert again.stats["iterations"] == 1
    assert bool(again.stats["converged"])
    assert relative(again.value, first.value) < 1e-9


def test_one_neumann_term_with_a_warm_start_is_the_single_loop_method():
    """SOBA's recursion v <- v + s (g - H v), written out."""
    case = quadratic()
    h = hessian(lambda w: case.problem.inner_loss(w, case.outer, None), case.inner)
    g = torch.func.grad(case.problem.outer_loss)(case.inner, case.outer, None)
    mixed = torch.func.jacrev(torch.func.grad(case.problem.inner_loss), argnums=1)(case.inner, case.outer, None)
    step = 0.5 / case.largest_curvature
    method = Implicit(WarmStart(Neumann(1, step)), warn=False)
    v = torch.zeros_like(g)
    for found in one_after_the_other(case, method, 5):
        v = v + step * (g - h @ v)
        assert torch.allclose(found.value, case.outer - mixed.T @ v, rtol=1e-10)


def test_a_warm_start_forgets_another_shape():
    method, state = Implicit(WarmStart(ConjugateGradient(50))), None
    for case in CASES:
        found = at_solution(case, method, state)
        state = found.state
        assert relative(found.value, case.exact) < 1e-8


# --- cheap one-step forms --------------------------------------------------------------------------------------------


def test_sama_with_sgd_is_the_finite_difference_form():
    problem, w, a, batches = logistic_problem()
    one = hypergradient(problem, w, a, batches, None, SAMA(bilevel.sgd(0.2), radius=0.01))
    two = hypergradient(problem, w, a, batches, None, FiniteDifference(0.2, radius=0.01))
    assert relative(one.value, two.value) < 1e-9


def test_sama_is_one_adam_step_for_a_linear_outer_loss():
    """For F linear in w, dF/dw is the same before and after the step, and only the finite difference remains."""
    problem, w, a, batches = logistic_problem()
    direction = {k: torch.randn(v.shape, generator=torch.Generator().manual_seed(8)).double() for k, v in w.items()}
    linear = BilevelProblem(problem.inner_loss, lambda w, a, _: bilevel.tree.dot(w, direction))
    rule = bilevel.adam(0.05)
    state = rule.init(w)._replace(
        mean={k: 0.02 * torch.ones_like(v) for k, v in w.items()},
        square={k: 0.01 * torch.ones_like(v) for k, v in w.items()},
        step=5,
    )
    exact = hypergradient(linear, w, a, batches[:1], None, Unrolled(rule, 1, state=state))
    errors = [
        relative(hypergradient(linear, w, a, batches[:1], None, SAMA(rule, state, radius)).indirect, exact.indirect)
        for radius in (4e-2, 2e-2)
    ]
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5  # central difference: error of second order


def test_the_online_reweighting_step_is_one_unrolled_step_from_weight_zero():
    """L2RW: with w_i = e_i at e = 0, -dF/de_i = lr <grad l_i, grad F> (Ren et al., 2018)."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 3, generator=g).double(), torch.randn(10, generator=g).double()
    z, t = torch.randn(5, 3, generator=g).double(), torch.randn(5, generator=g).double()
    problem = BilevelProblem(lambda w, e, _: (e * (x @ w - y) ** 2).sum(), lambda w, e, _: ((z @ w - t) ** 2).mean())
    w, lr = torch.randn(3, generator=g).double(), 0.05
    found = hypergradient(problem, w, torch.zeros(10).double(), [None], None, Unrolled(bilevel.sgd(lr), 1))
    per_sample = 2 * (x @ w - y)[:, None] * x
    outer = 2 * z.T @ (z @ w - t) / 5
    assert torch.allclose(-found.value, lr * per_sample @ outer, rtol=1e-12)


# --- penalties -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_f2sa_error_falls_as_one_over_the_penalty():
    case = quadratic(condition=3.0)
    errors = []
    for weight in (50.0, 100.0, 200.0):
        method = F2SA(bilevel.sgd(0.4 / case.largest_curvature), steps=3000, penalty=weight)
        errors.append(relative(at_solution(case, method).value, case.exact))
    assert errors[2] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_f2sa_says_where_it_went_and_grows_its_penalty():
    case = quadratic()
    method = F2SA(bilevel.sgd(0.05), steps=3, penalty=2.0, growth=0.5)
    found = list(one_after_the_other(case, method, 3))
    assert [one.stats["penalty"] for one in found] == [2.0, 2.5, 3.0]
    assert all(relative(one.inner, case.inner) > 1e-6 for one in found)


def test_bome_equals_its_formula_and_its_step_shrinks_the_gap():
    problem, w, a, batches = logistic_problem()
    method = BOME(bilevel.sgd(0.3), steps=8, control=0.5, step_size=0.01)
    found = hypergradient(problem, w, a, batches[:1], None, method)

    ahead = {k: v.clone() for k, v in w.items()}
    for _ in range(8):
        grads = torch.func.grad(problem.inner_loss)(ahead, a, batches[0])
        ahead = {k: v - 0.3 * grads[k] for k, v in ahead.items()}

    def gap(w, a):
        return problem.inner_loss(w, a, batches[0]) - problem.inner_loss(ahead, a, batches[0])

    q = torch.func.grad(gap, argnums=(0, 1))(w, a)
    f = torch.func.grad(problem.outer_loss, argnums=(0, 1))(w, a, None)
    flat_q, flat_f = ravel(q), ravel(f)
    weight = max(0.5 - float(flat_f @ flat_q / (flat_q @ flat_q)), 0.0)
    assert float(found.stats["multiplier"]) == pytest.approx(weight, rel=1e-10)
    assert relative(found.value, {"logit": f[1]["logit"] + weight * q[1]["logit"]}) < 1e-10
    assert float((flat_f + weight * flat_q) @ flat_q) > 0  # descends the gap
    assert relative(bilevel.tree.subtract(w, found.inner), {k: 0.01 * (f[0][k] + weight * q[0][k]) for k in w}) < 1e-9
    assert hypergradient(problem, w, a, batches[:1], None, BOME(bilevel.sgd(0.3))).inner is None


@pytest.mark.slow
def test_meso_approaches_the_closed_form_as_the_penalty_grows():
    case = quadratic(condition=3.0)
    errors = []
    for weight in (100.0, 200.0):
        method = MESO(0.2, 0.2, rounds=3000, radius=1.0, penalty=weight, power=0.0)
        errors.append(relative(at_solution(case, method).value, case.exact))
    assert errors[1] < 0.05
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_meso_keeps_its_companion_between_calls():
    case = quadratic()
    whole = MESO(rounds=4, penalty=3.0, power=0.0)
    twice = MESO(rounds=2, penalty=3.0, power=0.0)
    first = at_solution(case, twice)
    second = hypergradient(case.problem, first.inner, case.outer, [None], None, twice, state=first.state)
    found = at_solution(case, whole)
    assert torch.allclose(found.value, second.value, rtol=1e-12)
    assert torch.allclose(found.inner, second.inner, rtol=1e-12)


# --- zeroth order ----------------------------------------------------------------------------------------------------


def test_evolution_strategies_over_a_full_basis_are_exact_to_second_order():
    problem, w, a, batches = logistic_problem()
    exact = hypergradient(problem, w, a, batches, None, Unrolled(bilevel.adam(0.05), 3))
    errors = [
        relative(
            hypergradient(
                problem, w, a, batches, None, EvolutionStrategies(bilevel.adam(0.05), 3, sigma=s, pairs=48)
            ).indirect,
            exact.indirect,
        )
        for s in (0.02, 0.01)
    ]
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_few_pairs_are_unbiased():
    """The mean over 200 seeds of 4 of 24 directions: relative spread sqrt(24 / 4 / 200) = 0.17."""
    problem, w, a, batches = logistic_problem()
    exact = hypergradient(problem, w, a, batches, None, Unrolled(bilevel.sgd(0.3), 1)).indirect["logit"]
    total = torch.zeros_like(exact)
    for seed in range(200):
        method = EvolutionStrategies(bilevel.sgd(0.3), 1, pairs=4, seed=seed)
        total += hypergradient(problem, w, a, batches, None, method).indirect["logit"] / 200
    assert float((total - exact).norm() / exact.norm()) < 3 * 0.17
    assert float((total - exact).norm() / exact.norm()) > 1e-3


# --- trajectories ----------------------------------------------------------------------------------------------------


def test_pessimistic_truncation_stops_at_the_worst_iterate():
    """f = (w - 1)^2, F = (w - 0.9)^2 from w = 1.4: the first step is the worst; from w = 0.9: the last."""
    problem = BilevelProblem(lambda w, a, _: (w - a) ** 2, lambda w, a, _: (w - 0.9) ** 2)
    a = torch.tensor(1.0, dtype=torch.float64)
    for start, worst in ((1.4, 1), (0.9, 6)):
        w = torch.tensor(start, dtype=torch.float64)
        found = hypergradient(problem, w, a, [None], None, PessimisticUnrolled(bilevel.sgd(0.1), 6))
        assert found.stats["steps"] == worst
        same = hypergradient(problem, w, a, [None], None, Unrolled(bilevel.sgd(0.1), worst))
        assert torch.equal(found.value, same.value)


def test_aggregated_descent_matches_finite_differences():
    problem, w, a, batches = logistic_problem()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(h):
        outer = {"logit": a["logit"] + h * direction}
        params = {k: v.clone() for k, v in w.items()}
        for t in range(3):
            f = torch.func.grad(problem.inner_loss)(params, outer, batches[t % 2])
            g = torch.func.grad(problem.outer_loss)(params, outer, None)
            r = 0.4 / (t + 1)
            params = {k: v - 0.3 * ((1 - r) * f[k] + r * g[k]) for k, v in params.items()}
        return float(problem.outer_loss(params, outer, None))

    found = hypergradient(problem, w, a, batches, None, AggregatedUnrolled(bilevel.sgd(0.3), 3, ratio=0.4))
    h = 1e-4
    assert float(found.value["logit"] @ direction) == pytest.approx((value(h) - value(-h)) / (2 * h), rel=1e-6)
    plain = hypergradient(problem, w, a, batches, None, AggregatedUnrolled(bilevel.sgd(0.3), 3, ratio=0.0))
    full = hypergradient(problem, w, a, batches, None, Unrolled(bilevel.sgd(0.3), 3))
    assert relative(plain.value, full.value) < 1e-12


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAMA(bilevel.sgd(0.1), radius=0), "radius"),
        (lambda: F2SA(bilevel.sgd(0.1), penalty=0), "penalty"),
        (lambda: BOME(bilevel.sgd(0.1), steps=0), "steps"),
        (lambda: MESO(power=0.5), "power"),
        (lambda: MESO(radius=-1), "radius"),
        (lambda: EvolutionStrategies(bilevel.sgd(0.1), 1, sigma=0), "sigma"),
        (lambda: AggregatedUnrolled(bilevel.sgd(0.1), 1, ratio=1.0), "ratio"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
