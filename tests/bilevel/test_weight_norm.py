"""Weight normalisation: torch's kernel has a wrong second derivative, the composed one stands in for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import ConjugateGradient, Implicit, Unrolled, hypergradient, parameters_of, problem_from_modules
from bilevel.tree import ravel
from bilevel.weight_norm import ComposedWeightNorm, has_weight_norm
from tests.bilevel.methods import EXACT

SAMPLES = 6


def older(layer, dim=0):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer, dim=dim)


KINDS = {"parametrised": nn.utils.parametrizations.weight_norm, "hook": older}


def weighted_problem(normalise):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(normalise(nn.Linear(4, 6)), nn.Softplus(), normalise(nn.Linear(6, 3), dim=None)).double()
        weights = nn.Linear(1, SAMPLES, bias=False).double()
        x, y = torch.randn(2, SAMPLES, 4, dtype=torch.float64), torch.randint(0, 3, (2, SAMPLES))

    def inner(m, a, _):
        return (a.weight[:, 0].sigmoid() * F.cross_entropy(m(x[0]), y[0], reduction="none")).mean()

    problem = problem_from_modules(model, weights, inner, lambda m, a, _: F.cross_entropy(m(x[1]), y[1]))
    return problem, parameters_of(model), parameters_of(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_unrolls_through_weight_normalisation_are_exact(kind):
    problem, w, a = weighted_problem(KINDS[kind])
    rule, h = bilevel.sgd(0.3, momentum=0.9), 1e-4

    def run(method, shift=0.0):
        return hypergradient(problem, w, {"weight": a["weight"] + shift}, [None], None, method)

    full = run(Unrolled(rule, 3))
    values = [float(run(Unrolled(rule, 3), k * h).outer_loss) for k in (-2, -1, 1, 2)]
    difference = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
    assert float(full.value["weight"].sum()) == pytest.approx(difference, rel=1e-8)  # with the kernel 1e-5 away
    for make in EXACT.values():
        assert float((ravel(run(make(rule, 3)).value) - ravel(full.value)).norm() / ravel(full.value).norm()) < 1e-12


def test_the_implicit_method_sees_the_hessian_of_differences():
    """A damped solve with the Hessian that central differences of the gradient give."""
    problem, w, a = weighted_problem(KINDS["parametrised"])
    h = hypergradient(problem, w, a, [None], None, Implicit(ConjugateGradient(max_iter=200, damping=1.0), warn=False))

    def slope(flat):
        leaf = bilevel.tree.unravel(flat, w)
        return ravel(bilevel.tree.gradient(problem.inner_loss(v := bilevel.tree.as_variables(leaf), a, None), v))

    flat, step = ravel(w), 1e-4
    hessian = torch.stack(
        [(slope(flat + e) - slope(flat - e)) / (2 * step) for e in step * torch.eye(len(flat)).double()]
    )
    v = torch.linalg.solve(hessian + torch.eye(len(flat)).double(), ravel(h.inner_gradient))
    variables, outer = bilevel.tree.as_variables(w), bilevel.tree.as_variables(a)
    g = bilevel.tree.gradient(problem.inner_loss(variables, outer, None), variables, create_graph=True)
    want = -torch.autograd.grad(ravel(g) @ v, outer["weight"])[0]
    # Central differences of step 1e-4 are off by some 1e-8 of the third derivatives, which are of order one.
    assert float((h.indirect["weight"] - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_composed_values_are_those_of_the_kernel(dtype, dim):
    v = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    g = torch.ones_like(torch.norm_except_dim(v, 2, dim)) * 1.5
    want = torch._weight_norm(v, g, dim)
    with ComposedWeightNorm():
        got = torch._weight_norm(v, g, dim)
    assert got.dtype == dtype
    assert float((got - want).abs().max()) <= 4 * torch.finfo(dtype).eps * float(want.abs().max())


def test_only_modules_with_weight_normalisation_pay_for_it():
    assert not has_weight_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert all(has_weight_norm(nn.Sequential(make(nn.Linear(2, 2)))) for make in KINDS.values())
