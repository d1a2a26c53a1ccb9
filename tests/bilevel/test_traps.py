"""What published libraries get wrong, one test a trap, where no other test of this folder holds it already.

Elsewhere: CG's last iterate, damping, scalar systems (test_linear_solvers, test_hypergradients); Adam's epsilon, zero
moments, maximize, float64 corrections, truncation (test_hypergradients, test_unrolled_variants); learned rates and warm
states (test_unrolled_exact); buffers, ties, frozen parameters (test_modules).
"""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    BilevelProblem,
    CheckpointedUnrolled,
    ConjugateGradient,
    FiniteDifference,
    HypergradientWarning,
    Implicit,
    InnerOptimizer,
    RankOneGaussNewton,
    RecomputedUnrolled,
    Unrolled,
    hypergradient,
    parameters_of,
    problem_from_modules,
)
from bilevel.generators import random_state, restore_random_state
from bilevel.tree import leaves, ravel
from tests.bilevel.cases import CASES, quadratic
from tests.bilevel.test_hypergradients import logistic_problem, relative

SGD = bilevel.sgd(0.1)


def test_a_nan_stays_a_nan_and_is_named():
    """Elsewhere it is replaced by zeros without a word."""
    problem = BilevelProblem(lambda w, a, _: (w - a["x"]).square().sum() * (a["y"] / a["y"]), lambda w, a, _: w.sum())
    a = {"x": torch.ones(2), "y": torch.zeros(())}
    with pytest.warns(HypergradientWarning, match=r"not finite in \[\"outer\['x'\]\", \"outer\['y'\]\""):
        found = hypergradient(problem, torch.ones(2), a, [None], None, Unrolled(SGD))
    assert found.value["x"].isnan().all()


def test_the_rank_one_form_at_a_converged_inner_problem_is_marked_not_infinite():
    for case in CASES:
        found = hypergradient(case.problem, case.inner, case.outer, [None], None, RankOneGaussNewton(eps=1e-9))
        assert bool(found.stats["degenerate"])
        assert torch.equal(ravel(found.indirect), torch.zeros_like(ravel(found.indirect)))


def test_an_inner_problem_far_from_its_minimum_is_visible_in_the_record():
    """Unrolled and implicit disagree there; the norm of the inner gradient says so."""
    problem, w, a, batches = logistic_problem()
    far = hypergradient(problem, w, a, batches, None, Implicit(ConjugateGradient(), warn=False))
    params = {k: v.clone().requires_grad_() for k, v in w.items()}
    optimizer = torch.optim.LBFGS(list(params.values()), max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = torch.stack([problem.inner_loss(params, a, b) for b in batches]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    near = hypergradient(problem, params, a, batches, None, Implicit(ConjugateGradient(), warn=False))
    assert float(far.stats["inner_gradient_norm"]) > 1e3 * float(near.stats["inner_gradient_norm"])


def dropout_problem(p=0.5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 2)).double()
    weights = nn.Linear(1, 6, bias=False).double()
    x, y = torch.randn(6, 5).double(), torch.randint(0, 2, (6,))

    def inner(m, a, _):
        return (a.weight[:, 0].sigmoid() * F.cross_entropy(m(x), y, reduction="none")).mean()

    def outer(m, a, _):
        return F.cross_entropy(m[3](m[1](m[0](x))), 1 - y)

    return problem_from_modules(model, weights, inner, outer), parameters_of(model), parameters_of(weights)


@pytest.mark.parametrize(
    "method",
    [CheckpointedUnrolled(SGD, 5, 2), RecomputedUnrolled(SGD, 5, "reverse"), RecomputedUnrolled(SGD, 5, "forward")],
    ids=["checkpointed", "reverse", "forward"],
)
def test_recomputed_steps_see_the_dropout_masks_of_the_first_time(method):
    problem, w, a = dropout_problem()
    torch.manual_seed(1)
    full = hypergradient(problem, w, a, [None], None, Unrolled(SGD, 5))
    after = torch.rand(1)
    torch.manual_seed(1)
    found = hypergradient(problem, w, a, [None], None, method)
    assert relative(found.value, full.value) < 1e-12
    assert torch.equal(torch.rand(1), after)  # and the generator goes on as after the full unroll


def draw_from_numpy():
    return float(np.random.rand())  # noqa: NPY002 (what a user's loss may call)


OWN = np.random.default_rng(0)
OWN_DRAWS = {
    "python": lambda: random.random(),
    "numpy": draw_from_numpy,
    "own": lambda: float(OWN.random()),
}
RECOMPUTING = {
    "checkpointed": CheckpointedUnrolled(SGD, 5, 2),
    "reverse": RecomputedUnrolled(SGD, 5, "reverse"),
    "forward": RecomputedUnrolled(SGD, 5, "forward"),
}


@pytest.mark.parametrize("name", RECOMPUTING)
@pytest.mark.parametrize("generator", OWN_DRAWS)
def test_numbers_drawn_outside_of_torch_are_replayed_or_missed_by_name(generator, name):
    """Python's and NumPy's generators are replayed; one of the loss's own cannot be, and the loss value tells."""
    problem, w, a, batches = logistic_problem()
    noisy = BilevelProblem(
        lambda w, a, b: (0.5 + OWN_DRAWS[generator]()) * problem.inner_loss(w, a, b), problem.outer_loss
    )
    before = random_state()
    try:
        full = hypergradient(noisy, w, a, batches, None, Unrolled(SGD, 5))
        after = random.random(), draw_from_numpy()
        restore_random_state(before)
        if generator == "own":
            with pytest.warns(HypergradientWarning, match="not the same function twice"):
                hypergradient(noisy, w, a, batches, None, RECOMPUTING[name])
            return
        found = hypergradient(noisy, w, a, batches, None, RECOMPUTING[name])
        assert relative(found.value, full.value) < 1e-12
        assert (random.random(), draw_from_numpy()) == after  # the generators go on as after the full unroll
    finally:
        restore_random_state(before)


def test_both_sides_of_a_finite_difference_see_the_same_masks():
    problem, w, a = dropout_problem()
    torch.manual_seed(1)
    one_step = hypergradient(problem, w, a, [None], None, Implicit(bilevel.Identity(0.1), warn=False))
    torch.manual_seed(1)
    difference = hypergradient(problem, w, a, [None], None, FiniteDifference(0.1, radius=1e-3))
    assert relative(difference.indirect, one_step.indirect) < 1e-4


def test_all_products_of_a_solve_see_one_mini_batch_and_one_mask():
    """Then the Hessian is symmetric; fresh masks in every product would break that."""
    problem, w, a = dropout_problem()
    rows = []

    def capture(matvec, b):
        rows.extend(matvec(e) for e in torch.eye(len(b), dtype=b.dtype))
        return ConjugateGradient(1)(matvec, b)

    hypergradient(problem, w, a, [None], None, Implicit(capture, warn=False))
    matrix = torch.stack(rows)
    assert torch.allclose(matrix, matrix.T, atol=1e-14)
    assert float(matrix.abs().max()) > 0


def test_an_inner_optimizer_that_breaks_the_graph_is_named():
    def update(grads, state, *, params, inplace=False):
        with torch.no_grad():
            return {k: -0.1 * g for k, g in grads.items()}, state

    problem, w, a, batches = logistic_problem()
    with pytest.raises(ValueError, match="`optimizer` is not differentiable"):
        hypergradient(problem, w, a, batches, None, Unrolled(InnerOptimizer(lambda p: (), update)))
    with pytest.raises(TypeError, match="must return an"):
        hypergradient(problem, w, a, batches, None, Unrolled(lambda outer: 0.1))
    with pytest.raises(TypeError, match="got SGD"):
        Unrolled(torch.optim.SGD)


def test_an_in_place_change_of_a_variable_raises_and_changes_nothing():
    problem = BilevelProblem(lambda w, a, _: w.mul_(2).sum() * a.sum(), lambda w, a, _: w.sum())
    w, a = torch.ones(2), torch.ones(2)
    with pytest.raises(RuntimeError, match="in-place"):
        hypergradient(problem, w, a, [None], None, Unrolled(SGD))
    assert torch.equal(w, torch.ones(2))


def test_variables_on_two_devices_are_named():
    problem = BilevelProblem(lambda w, a, _: w.sum() * a.sum(), lambda w, a, _: w.sum())
    with pytest.raises(ValueError, match="several devices"):
        hypergradient(problem, torch.ones(2), torch.ones(2, device="meta"), [None], None, Unrolled(SGD))


def test_a_variable_in_both_trees_gets_both_derivatives():
    """F = (w - 1)^2 with a = w as well: direct part through a, indirect part through the inner solution."""
    case = quadratic()
    problem = BilevelProblem(
        lambda w, a, b: case.problem.inner_loss(w["w"], a["a"], b) + (w["s"] - a["a"]).square().sum(),
        lambda w, a, b: case.problem.outer_loss(w["w"], a["a"], b) + w["s"].sum() + 2 * a["s"].sum(),
    )
    shared = case.outer.clone()
    w, a = {"w": case.inner, "s": shared}, {"a": case.outer, "s": shared}
    found = hypergradient(problem, w, a, [None], None, Implicit(ConjugateGradient(50)))
    assert torch.allclose(found.value["s"], torch.full_like(shared, 2.0))
    assert torch.allclose(found.value["a"], case.exact + 1)  # d s*/da = 1


@pytest.mark.parametrize("tree", ["nested", "tuple", "tensor"])
def test_nests_of_trees(tree):
    case = quadratic()
    wrap, unwrap = {
        "nested": (lambda x: {"b": [x[:1], (x[1:2], {"z": x[2:]})]}, lambda t: torch.cat(leaves(t))),
        "tuple": (lambda x: (x[:1], x[1:]), lambda t: torch.cat(leaves(t))),
        "tensor": (lambda x: x, lambda t: t),
    }[tree]
    problem = BilevelProblem(
        lambda w, a, b: case.problem.inner_loss(unwrap(w), unwrap(a), b),
        lambda w, a, b: case.problem.outer_loss(unwrap(w), unwrap(a), b),
    )
    for method in (Implicit(ConjugateGradient(50)), RecomputedUnrolled(bilevel.sgd(0.05), 500)):
        found = hypergradient(problem, wrap(case.inner), wrap(case.outer), [None], None, method)
        assert relative(unwrap(found.value), case.exact) < 1e-6


@pytest.mark.parametrize(
    "method",
    [Unrolled(SGD, 2), RecomputedUnrolled(SGD, 2, "reverse"), Implicit(ConjugateGradient(5, damping=1.0), warn=False)],
    ids=["unrolled", "recomputed", "implicit"],
)
def test_autocast_stays_within_the_precision_of_bfloat16(method):
    """bfloat16 has 8 bits: relative errors of a few 2^-8 in the losses, some times that in their derivatives."""
    torch.manual_seed(0)
    model, weights = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2)), nn.Linear(1, 6, bias=False)
    x, y = torch.randn(6, 5), torch.randint(0, 2, (6,))
    results = []
    for enabled in (False, True):

        def loss(m, a, sign, enabled=enabled):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses = F.cross_entropy(m(x), (y + sign) % 2, reduction="none")
            return (a.weight[:, 0].sigmoid() * losses).mean()

        problem = problem_from_modules(model, weights, loss, loss)
        found = hypergradient(problem, parameters_of(model), parameters_of(weights), [0], 1, method)
        assert found.value["weight"].dtype == torch.float32
        results.append(found.value)
    assert 0 < relative(results[1], results[0]) < 0.05


def compiled_problem():
    """Weighted regression whose inner loss is a graph that torch.compile has captured (without generating code)."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def inner(w, a, _):
        return (a.exp() * (x @ w - x[:, 0]).square()).mean() + 0.1 * w.square().sum()

    def outer(w, a, _):
        return (x @ w - x[:, 1]).square().mean()

    compiled = torch.compile(inner, backend="aot_eager", fullgraph=True)
    w, a = torch.full((3,), 0.5, dtype=torch.float64), torch.linspace(-1, 1, 12, dtype=torch.float64)
    return BilevelProblem(inner, outer), BilevelProblem(compiled, outer), w, a


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: bilevel.FiniteDifference(0.1),
        lambda: bilevel.F2SA(bilevel.sgd(0.1), 5),
        lambda: bilevel.MESO(0.05, 0.05, 5),
    ],
    ids=["finite difference", "F2SA", "MESO"],
)
def test_first_order_methods_take_a_compiled_inner_loss(make):
    eager, compiled, w, a = compiled_problem()
    want, got = (hypergradient(p, w, a, [None], None, make()).value for p in (eager, compiled))
    assert relative(got, want) < 1e-9


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_second_derivatives_of_a_compiled_loss_fail_by_name_instead_of_giving_zeros():
    """Whatever was compiled before: torch's own error depends on it, so a newly reset compiler comes first."""
    methods = [
        Unrolled(SGD, 2),
        CheckpointedUnrolled(SGD, 2, 1),
        RecomputedUnrolled(SGD, 2),
        RecomputedUnrolled(SGD, 2, "forward"),
        Implicit(ConjugateGradient(), warn=False),
    ]
    torch._dynamo.reset()
    _, compiled, w, a = compiled_problem()
    for method in methods:
        with pytest.raises(RuntimeError, match="has compiled has no second derivatives"):
            hypergradient(compiled, w, a, [None], None, method)
    with pytest.raises(RuntimeError, match=r"cannot enter a loss that torch\.compile has"):
        hypergradient(compiled, w, a, [None], None, bilevel.ForwardUnrolled(SGD, 2))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_part_of_a_model_is_found_behind_uncompiled_ones():
    _, _, w, a = compiled_problem()
    middle = torch.compile(torch.tanh, backend="aot_eager", fullgraph=True)
    problem = BilevelProblem(lambda w, a, _: (a.mean() * middle(w * w)).sum(), lambda w, a, _: w.sum())
    with pytest.raises(RuntimeError, match="has compiled has no second derivatives"):
        hypergradient(problem, w, a, [None], None, Unrolled(SGD, 2))
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "method",
    [Unrolled(bilevel.adam(0.05), 3), RecomputedUnrolled(bilevel.adam(0.05), 3), Implicit(ConjugateGradient(), False)],
    ids=["unrolled", "recomputed", "implicit"],
)
def test_cpu_and_gpu_agree(method):
    problem, w, a, batches = logistic_problem()
    on_cpu = hypergradient(problem, w, a, batches, None, method)
    moved = [{k: v.cuda() for k, v in tree.items()} for tree in (w, a)]
    on_gpu = hypergradient(problem, *moved, [b.cuda() for b in batches], None, method)
    assert relative({k: v.cpu() for k, v in on_gpu.value.items()}, on_cpu.value) < 1e-9
