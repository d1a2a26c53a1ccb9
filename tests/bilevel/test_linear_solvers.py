"""Solvers against the dense solution, and their behaviour where there is none."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bilevel
from bilevel import GMRES, MINRES, ConjugateGradient, Dense, Identity, Implicit, Neumann, Nystrom, WarmStart
from tests.bilevel.methods import SOLVERS


def system(n, condition, seed):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    a = q @ torch.diag(torch.linspace(1, condition, n, dtype=torch.float64)) @ q.T
    return a, torch.randn(n, generator=g, dtype=torch.float64)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n=st.integers(1, 12), condition=st.floats(1, 1e3), seed=st.integers(0, 1000))
def test_cg_and_dense_match_linalg_solve(n, condition, seed):
    a, b = system(n, condition, seed)
    exact = torch.linalg.solve(a, b)
    for solver in (ConjugateGradient(max_iter=20 * n, rtol=1e-13), Dense()):
        found = solver(lambda v: a @ v, b)
        assert float((found.value - exact).norm() / exact.norm()) < 1e-9
        assert float(found.residual_norm) == pytest.approx(float((a @ found.value - b).norm()), abs=1e-9)


def test_cg_returns_the_iterate_that_converged():
    """A = I, b = 1 converges in one step; returning the iterate before it (0) is a known defect elsewhere."""
    found = ConjugateGradient()(lambda v: v, torch.ones(3, dtype=torch.float64))
    assert torch.equal(found.value, torch.ones(3, dtype=torch.float64))
    assert found.iterations == 1
    assert bool(found.converged)


def test_damping_solves_the_damped_system():
    a, b = system(5, 10, 0)
    found = ConjugateGradient(50, 1e-13, damping=0.5)(lambda v: a @ v, b)
    exact = torch.linalg.solve(a + 0.5 * torch.eye(5, dtype=torch.float64), b)
    assert torch.allclose(found.value, exact, rtol=1e-10)


def test_a_zero_right_hand_side_needs_no_product():
    found = ConjugateGradient()(lambda v: v, torch.zeros(3))
    assert found.iterations == 0
    assert bool(found.converged)


def test_neumann_is_its_partial_sum_and_reports_its_residual():
    a, b = system(4, 5, 1)
    step, terms = 0.1, 7
    m = torch.eye(4, dtype=torch.float64) - step * a
    exact = step * sum(torch.linalg.matrix_power(m, j) @ b for j in range(terms))
    found = Neumann(terms, step)(lambda v: a @ v, b)
    assert torch.allclose(found.value, exact, rtol=1e-12)
    assert float(found.residual_norm) == pytest.approx(float((a @ exact - b).norm()), rel=1e-9)


def test_dense_solves_a_singular_system_in_the_least_squares_sense():
    a = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    found = Dense()(lambda v: a @ v, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    assert torch.allclose(found.value, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("make", [lambda: ConjugateGradient(0), lambda: Neumann(0), lambda: Neumann(3, -1.0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_dense_refuses_large_systems():
    with pytest.raises(ValueError, match="ConjugateGradient"):
        Dense(max_size=3)(lambda v: v, torch.ones(4))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_gmres_solves_indefinite_and_nonsymmetric_systems(n, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=g, dtype=torch.float64) + 3 * torch.diag(
        torch.randn(n, generator=g, dtype=torch.float64).sign()
    )
    b = torch.randn(n, generator=g, dtype=torch.float64)
    condition = float(torch.linalg.cond(a))
    exact = torch.linalg.solve(a, b)
    found = GMRES(max_iter=2 * n, rtol=1e-12)(lambda v: a @ v, b)
    assert float((found.value - exact).norm() / exact.norm()) < 1e-11 * max(condition, 10)
    symmetric = (a + a.T) / 2
    if float(torch.linalg.cond(symmetric)) < 1e6:
        found = GMRES(max_iter=2 * n, rtol=1e-12)(lambda v: symmetric @ v, b)
        assert bool(found.converged)
        lowest = float(torch.linalg.eigvalsh(symmetric)[0])
        assert float(found.minimum_curvature) >= lowest - 1e-9  # Ritz values lie inside the spectrum


def test_gmres_sees_negative_curvature_and_needs_no_product_for_zero():
    a = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))
    found = GMRES()(lambda v: a @ v, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(found.value, torch.tensor([1 / 3, -1.0], dtype=torch.float64))
    assert float(found.minimum_curvature) == pytest.approx(-1.0)
    assert GMRES()(lambda v: v, torch.zeros(3)).iterations == 0


def test_nystrom_is_exact_at_full_rank_and_for_low_rank_matrices():
    a, b = system(8, 50, 3)
    damping = 1e-2
    exact = torch.linalg.solve(a + damping * torch.eye(8, dtype=torch.float64), b)
    found = Nystrom(rank=8, damping=damping)(lambda v: a @ v, b)
    assert torch.allclose(found.value, exact, rtol=1e-6)
    assert bool(found.converged)
    u = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, b = u @ u.T, torch.ones(30, dtype=torch.float64)
    exact = torch.linalg.solve(low + damping * torch.eye(30, dtype=torch.float64), b)
    assert torch.allclose(Nystrom(5, damping)(lambda v: low @ v, b).value, exact, rtol=1e-6)
    rough = Nystrom(2, damping)(lambda v: low @ v, b)
    assert not bool(rough.converged)


def test_identity_is_the_first_neumann_term():
    a, b = system(5, 4, 2)
    one, two = Identity(0.2)(lambda v: a @ v, b), Neumann(1, 0.2)(lambda v: a @ v, b)
    assert torch.equal(one.value, two.value)
    assert float(one.residual_norm) == pytest.approx(float(two.residual_norm))


@pytest.mark.parametrize("make", [lambda: GMRES(0), lambda: Nystrom(0), lambda: Nystrom(3, 0.0), lambda: Identity(0.0)])
def test_impossible_settings_of_the_other_solvers_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_minres_solves_indefinite_systems(n, seed):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    a = q @ torch.diag(signs * torch.linspace(1, 5, n, dtype=torch.float64)) @ q.T
    b = torch.randn(n, generator=g, dtype=torch.float64)
    exact = torch.linalg.solve(a, b)
    found = MINRES(max_iter=4 * n, rtol=1e-12)(lambda v: a @ v, b)
    assert float((found.value - exact).norm() / exact.norm()) < 1e-9
    assert bool(found.converged)


def test_minres_sees_negative_curvature():
    found = MINRES()(lambda v: torch.tensor([-3.0, 1.0]).double() * v, torch.tensor([1.0, 0.1]).double())
    assert -3 <= float(found.minimum_curvature) < -2.5


def test_minres_and_gmres_take_the_same_steps():
    """Both minimise the residual over the same Krylov space."""
    a, b = system(10, 50, 0)
    a = a - 20 * torch.eye(10, dtype=torch.float64)
    for k in (1, 3, 7):
        one, two = (s(k, 0.0)(lambda v: a @ v, b) for s in (MINRES, GMRES))
        assert torch.allclose(one.value, two.value, rtol=1e-9, atol=1e-12)


def test_minres_of_a_singular_system_gives_a_least_squares_solution():
    a = torch.diag(torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64))
    found = MINRES(10)(lambda v: a @ v, torch.ones(3, dtype=torch.float64))
    assert float(found.residual_norm) == pytest.approx(1.0, rel=1e-6)
    assert not bool(found.converged)


def test_minres_with_damping_and_for_zero():
    a, b = system(5, 10, 0)
    exact = torch.linalg.solve(a + 0.5 * torch.eye(5, dtype=torch.float64), b)
    assert torch.allclose(MINRES(50, 1e-13, damping=0.5)(lambda v: a @ v, b).value, exact)
    assert MINRES()(lambda v: a @ v, torch.zeros(5)).iterations == 0


several = [row for row in SOLVERS.values() if row.side_by_side]


@pytest.mark.parametrize("solver", [row.solver for row in several], ids=str)
def test_systems_side_by_side_equal_one_after_the_other(solver):
    matrices, rights = zip(*(system(6, c, s) for s, c in enumerate((1.5, 2.0, 3.0))), strict=True)
    a, b = torch.stack(matrices), torch.stack(rights)
    b[1] = 0  # a system that is solved from the start
    together = solver(lambda v: (a @ v[..., None])[..., 0], b)
    for i in range(3):
        alone = solver(lambda v, i=i: a[i] @ v, b[i])
        assert torch.allclose(together.value[i], alone.value, rtol=1e-8, atol=1e-12)
        for name in ("residual_norm", "converged", "minimum_curvature"):
            x, y = getattr(together, name)[i], getattr(alone, name)
            assert torch.allclose(x.double(), y.double(), rtol=1e-6, atol=1e-9, equal_nan=True), name


ALONE_OR_TOGETHER = [(name, many) for name, row in SOLVERS.items() for many in [False, True][: 1 + row.side_by_side]]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *((torch.float32, s) for s in (1e20, 1e-24, 1e-37, 1e36)),
        *((torch.float64, s) for s in (1e200, 1e-200)),
        *((torch.float16, s) for s in (256.0, 2e4, 1e-4)),
        *((torch.bfloat16, s) for s in (1e20, 1e-24)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "together"), ALONE_OR_TOGETHER)
def test_no_solver_depends_on_the_size_of_the_right_hand_side(name, together, dtype, size):
    """H v = s b has the solution s v, in the range of the dtype where squares are not."""
    row = SOLVERS[name]
    a = torch.diag(torch.linspace(1, 3, 6, dtype=torch.float64)).to(dtype)
    unit = torch.tensor([3.0, -1.0, 2.0, 0.5, -2.0, 1.0], dtype=torch.float64)
    unit = unit / unit.norm()
    b = (size * unit).to(dtype)
    product = lambda v: a @ v  # noqa: E731
    if together:
        b, product = torch.stack([b, torch.zeros_like(b)]), lambda v: (a @ v[..., None])[..., 0]
    found = row.solver(product, b)
    like = row.solver(lambda v: a.double() @ v, unit)
    value = (found.value[0] if together else found.value).double() / size
    # Entries and products of H are rounded to eps (bfloat16: 8e-3, and 1e-4 is near the end of float16's range).
    tolerance = 1e-3 if name == "nystrom" and dtype == torch.float32 else 20 * torch.finfo(dtype).eps
    tolerance = max(tolerance, 1e-9) if dtype in (torch.float32, torch.float64) else max(tolerance, 0.05)
    assert float((value - like.value).norm()) < tolerance * float(like.value.norm()) * (1 if name != "nystrom" else 20)
    assert bool(torch.as_tensor(found.converged).reshape(-1)[0]) or dtype in (torch.float16, torch.bfloat16)
    assert float(value.norm()) > 0.1


def known_system(damping=0.0):
    """Six unknowns, eigenvalues from 1 to 3, and the solution of the damped system."""
    a, b = system(6, 3, 0)
    return a, b, torch.linalg.solve(a + damping * torch.eye(6, dtype=torch.float64), b)


def test_every_public_solver_has_a_row():
    public = {
        value
        for name in bilevel.linear_solvers.__all__
        if inspect.isclass(value := getattr(bilevel.linear_solvers, name)) and name != "LinearSolver"
    }
    assert public == {type(row.solver) for row in SOLVERS.values()}
    assert len(public) > 5


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_solves_its_system_and_says_how_well(name):
    row = SOLVERS[name]
    a, b, exact = known_system(row.damping)
    found = row.solver(lambda v: a @ v, b)
    assert float((found.value - exact).norm() / exact.norm()) <= row.error
    rest = b - a @ found.value - row.damping * found.value
    assert float(found.residual_norm) == pytest.approx(float(rest.norm()), rel=1e-6, abs=1e-13)
    assert found.value.dtype == b.dtype
    assert bool(found.converged)
    zero = row.solver(lambda v: a @ v, torch.zeros_like(b))
    assert float(zero.value.norm()) == 0
    assert bool(zero.converged)


@pytest.mark.parametrize(("name", "together"), [case for case in ALONE_OR_TOGETHER if case[0] != "warm start"])
def test_a_solve_goes_on_from_y0(name, together):
    """From the solution nothing is left to do; from elsewhere the answer is y0 plus that for what y0 leaves of b."""
    row = SOLVERS[name]
    a, b, exact = known_system(row.damping)
    elsewhere = exact + torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if together:
        b, exact, elsewhere = (torch.stack([x, -2 * x]) for x in (b, exact, elsewhere))
    at_once = row.solver(lambda v: v @ a, b, exact)
    assert float((at_once.value - exact).norm() / exact.norm()) < 1e-12
    assert bool(at_once.converged.all())
    gone_on = row.solver(lambda v: v @ a, b, y0=elsewhere)
    if name == "dense":
        assert torch.equal(gone_on.value, row.solver(lambda v: v @ a, b).value)
        return
    rest = b - elsewhere @ a - row.damping * elsewhere
    part = row.solver(lambda v: v @ a, rest)
    assert float((gone_on.value - elsewhere - part.value).norm() / exact.norm()) < 1e-9
    assert gone_on.iterations <= part.iterations + 1  # one product finds what y0 leaves
    for size in (1e-200, 1e200):
        scaled = row.solver(lambda v: v @ a, size * b, size * elsewhere)
        assert torch.allclose(scaled.value / size, gone_on.value, rtol=1e-9)


@pytest.mark.parametrize(
    ("solver", "together"),
    [(ConjugateGradient, False), (ConjugateGradient, True), (MINRES, False), (GMRES, False)],
)
def test_tolerances_are_relative_to_b_wherever_a_solve_starts(solver, together):
    """y0 that leaves 1e-4 |b| meets rtol = 1e-3 without an iteration, and rtol = 1e-6 |b| needs some."""
    a, b, exact = known_system()
    close = exact + 1e-4 * float(b.norm()) * torch.linalg.solve(a, b) / float(b.norm())
    if together:
        b, close = torch.stack([b, b]), torch.stack([close, close])
    assert solver(50, rtol=1e-3)(lambda v: v @ a, b, close).iterations == 1
    finer = solver(50, rtol=1e-6)(lambda v: v @ a, b, close)
    assert 1 < finer.iterations < solver(50, rtol=1e-6)(lambda v: v @ a, b).iterations + 1
    assert float(finer.residual_norm.max()) <= 1e-6 * float(b.norm())
    assert bool(finer.converged.all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_y0_in_half_precision_is_used_in_full(dtype):
    a, b, exact = known_system()
    found = ConjugateGradient(3)(lambda v: a.to(dtype) @ v, b.to(dtype), exact.to(dtype))
    assert found.value.dtype == dtype
    assert float((found.value.double() - exact).norm() / exact.norm()) < 10 * torch.finfo(dtype).eps


def test_a_y0_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"`y0` has shape \(3,\), `b` \(4,\)"):
        ConjugateGradient()(lambda v: v, torch.ones(4), torch.ones(3))


def test_a_warm_start_keeps_the_last_solution_that_was_finite():
    a, b, _ = known_system()
    solver = WarmStart(ConjugateGradient(50))
    first = solver(lambda v: a @ v, b)
    broken = solver(lambda v: a @ v, b * float("nan"), first.state)
    assert not bool(broken.value.isfinite().any())
    assert torch.equal(broken.state["last"], first.value)
    assert solver(lambda v: a @ v, b, broken.state).iterations == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", [ConjugateGradient(), MINRES(), Neumann(), Identity()], ids=str)
def test_a_right_hand_side_that_is_not_finite_is_never_called_solved(solver, bad):
    found = solver(lambda v: 2 * v, torch.tensor([1.0, bad, 0.0]))
    assert not bool(found.converged)
    assert not bool(found.value.isfinite().all())


def test_the_half_precision_example_has_the_exact_hypergradient():
    """F = |w - 400|^2 / 2 with w* = a: dF/da = a - 400, to two units (0.25) of float16, where its squares overflow."""
    problem = bilevel.BilevelProblem(
        lambda w, a, _: (w * w).sum() / 2 - w @ a, lambda w, a, _: (w - 400).float().square().sum() / 2
    )
    at = torch.full((3,), 3.0).half()
    for method in ("conjugate_gradient", "minres", Implicit(Dense()), Implicit(GMRES())):
        found = bilevel.hypergradient(problem, at, at, [None], None, method)
        assert float((found.value.float() + 397).abs().max()) <= 0.5
        assert bool(found.stats["converged"])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6, 1e8])
def test_cg_reports_the_residual_that_is_there(dtype, condition, batched):
    """|H v - b| as float64 has it, where the recurrence says 1e-9; the products' own rounding is |H| |v| eps."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))
    a = (q @ torch.diag(torch.logspace(0, math.log10(condition), 40, dtype=torch.float64)) @ q.T).to(dtype)
    b = torch.randn(40, generator=g, dtype=torch.float64).to(dtype)
    given = b[None] if batched else b
    found = ConjugateGradient(400, 1e-10)(lambda v: v @ a.T, given)
    value = (found.value[0] if batched else found.value).double()
    true = float((a.double() @ value - b.double()).norm())
    rounding = 40 * torch.finfo(dtype).eps * condition * float(value.norm())
    assert float(found.residual_norm) == pytest.approx(true, rel=0.2, abs=rounding)
    asked = max(1e-10, 100 * torch.finfo(dtype).eps) * float(b.norm())
    assert bool(found.converged) == (float(found.residual_norm) <= asked)


def test_cg_spends_no_product_where_its_recurrence_can_be_trusted():
    a, b = system(30, 10, 0)
    assert ConjugateGradient(12)(lambda v: a @ v, b).iterations == 12
    solved = ConjugateGradient(60, rtol=1e-6)(lambda v: a @ v, b)
    assert float(solved.residual_norm) == pytest.approx(float((a @ solved.value - b).norm()), rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_default_call_in_float32_warns_only_where_the_answer_is_worse_than_asked(seed):
    """Warnings are errors here; the answer is right to a condition of 10 times the accepted residual of 1.2e-5."""
    a, b = system(12, 10, seed)
    a, b = a.float(), b.float()
    problem = bilevel.BilevelProblem(lambda w, x, _: w @ a @ w / 2 - w @ x, lambda w, x, _: w @ b)
    w = torch.linalg.solve(a, b)
    found = bilevel.hypergradient(problem, w, b, [None], None)
    exact = torch.linalg.solve(a.double(), b.double())
    assert float((found.value.double() - exact).norm() / exact.norm()) < 1.2e-4
    assert bool(found.stats["converged"])


def test_an_answer_worse_than_asked_still_warns():
    a = torch.diag(torch.logspace(0, 4, 60))
    problem = bilevel.BilevelProblem(lambda w, x, _: w @ a @ w / 2 - w @ x, lambda w, x, _: w.sum())
    x = torch.ones(60)
    with pytest.warns(bilevel.HypergradientWarning, match="was not solved"):
        bilevel.hypergradient(problem, x / a.diagonal(), x, [None], None)


@pytest.mark.parametrize("solver", [MINRES(), GMRES()], ids=["minres", "gmres"])
@pytest.mark.parametrize("b", [[1.0, 1.0], [3.0, 1.0], [1.0, 3.0]])
def test_a_saddle_shows_in_the_smallest_ritz_value(solver, b):
    """H = diag(3, -1): along b = (1, 1) the curvature is 1, and along the second Lanczos vector too."""
    found = solver(lambda v: torch.tensor([3.0, -1.0]).double() * v, torch.tensor(b).double())
    assert float(found.minimum_curvature) == pytest.approx(-1.0)


def test_minres_at_a_saddle_warns():
    saddle = torch.tensor([3.0, -1.0]).double()
    problem = bilevel.BilevelProblem(lambda w, a, _: (saddle * w * w).sum() / 2 - w @ a, lambda w, a, _: w.sum())
    w = torch.zeros(2).double()
    with pytest.warns(bilevel.HypergradientWarning, match=r"curvature -1.00e\+00 <= 0"):
        bilevel.hypergradient(problem, w, w, [None], None, "minres")
