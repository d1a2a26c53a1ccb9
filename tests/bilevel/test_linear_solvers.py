"""Solvers against the dense solution, and their behaviour where there is none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import GMRES, MINRES, ConjugateGradient, Dense, Identity, Neumann, Nystrom


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


@pytest.mark.parametrize(
    "solver", [ConjugateGradient(50), Neumann(5, 0.01), Identity(0.3), Dense()], ids=lambda s: type(s).__name__
)
def test_systems_side_by_side_equal_one_after_the_other(solver):
    matrices, rights = zip(*(system(6, c, s) for s, c in enumerate((1.5, 10.0, 40.0))), strict=True)
    a, b = torch.stack(matrices), torch.stack(rights)
    b[1] = 0  # a system that is solved from the start
    together = solver(lambda v: (a @ v[..., None])[..., 0], b)
    for i in range(3):
        alone = solver(lambda v, i=i: a[i] @ v, b[i])
        assert torch.allclose(together.value[i], alone.value, rtol=1e-8, atol=1e-12)
        for name in ("residual_norm", "converged", "minimum_curvature"):
            x, y = getattr(together, name)[i], getattr(alone, name)
            assert torch.allclose(x.double(), y.double(), rtol=1e-6, atol=1e-9, equal_nan=True), name
