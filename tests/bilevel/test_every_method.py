"""What holds for every hypergradient method, whatever its idea: one row in `methods.py` buys all of this."""

import inspect

import pytest
import torch

import bilevel
from bilevel import BilevelProblem, BilevelTrainer, RecomputedUnrolled, batched, hypergradient
from bilevel.batched import stack_trees, unstack_trees
from bilevel.checkpoint import digest, load_checkpoint, plain, save_checkpoint
from bilevel.hypergradients import NotFiniteError, resolve_method
from bilevel.results import Hypergradient, initial_state
from bilevel.tree import leaves, map_leaves, ravel
from tests.bilevel.methods import METHODS
from tests.bilevel.test_hypergradients import logistic_problem, relative

PROBLEMS = 4


def rows(wanted=lambda row: True):
    chosen = {name: row for name, row in METHODS.items() if wanted(row)}
    return pytest.mark.parametrize("row", chosen.values(), ids=chosen)


every = rows()
carrying = rows(lambda row: row.carries)


def call(row, n=1, method=None, state=None):
    """The results of n calls on the logistic problem, each with the state of the one before."""
    problem, w, a, batches = logistic_problem()
    found = []
    for _ in range(n):
        found.append(hypergradient(problem, w, a, batches, None, method or row.make(w), state=state))
        state = found[-1].state
    return found


def test_every_public_method_has_a_row():
    _, w, _, _ = logistic_problem()
    public = {
        value
        for name in bilevel.__all__
        if inspect.isclass(value := getattr(bilevel, name)) and hasattr(value, "estimate")
    }
    assert public == {type(row.make(w)) for row in METHODS.values()}
    assert len(public) > 10


@every
def test_inputs_stay_and_the_value_is_direct_plus_indirect(row):
    problem, w, a, batches = logistic_problem()
    a = a | {"unused": torch.ones(2, dtype=torch.float64)}
    before = [x.clone() for x in leaves((w, a))]
    found = hypergradient(problem, w, a, batches, None, row.make(w))
    assert isinstance(found, Hypergradient)
    assert torch.allclose(ravel(found.value), ravel(found.direct) + ravel(found.indirect), rtol=1e-14)
    assert all(torch.equal(x, y) and x.grad is None for x, y in zip(before, leaves((w, a)), strict=True))
    assert not any(x.requires_grad for x in leaves((found.value, found.indirect, found.inner_gradient)))
    assert torch.equal(found.direct["unused"], torch.zeros(2, dtype=torch.float64))
    if not row.uses_all:
        assert torch.equal(found.value["unused"], torch.zeros(2, dtype=torch.float64))
    assert (found.inner is not None) == row.moves
    assert {k: x.shape for k, x in found.inner_gradient.items()} == {k: x.shape for k, x in w.items()}


@rows(lambda row: row.homogeneous)
def test_scaling_the_outer_loss_scales_the_hypergradient(row):
    problem, w, a, batches = logistic_problem()
    tripled = BilevelProblem(problem.inner_loss, lambda *args: 3 * problem.outer_loss(*args))
    one, three = (hypergradient(p, w, a, batches, None, row.make(w)).value for p in (problem, tripled))
    # Differences along the gradient cancel to eps / radius, 2e-14 of losses of order one.
    assert relative(three, bilevel.tree.scale(3.0, one)) < 1e-10


@rows(lambda row: not row.uses_all)
def test_the_container_does_not_matter(row):
    problem, w, a, batches = logistic_problem()
    nested = BilevelProblem(
        lambda w, a, b: problem.inner_loss(w, {"logit": a["deep"][0]}, b),
        lambda w, a, b: problem.outer_loss(w, {"logit": a["deep"][0]}, b),
    )
    plainly = hypergradient(problem, w, a, batches, None, row.make(w))
    wrapped = hypergradient(nested, w, {"deep": (a["logit"],)}, batches, None, row.make(w))
    assert torch.equal(wrapped.value["deep"][0], plainly.value["logit"])


@every
def test_single_precision_stays_single(row):
    problem, w, a, batches = logistic_problem()
    single = BilevelProblem(lambda *x: problem.inner_loss(*x).float(), lambda *x: problem.outer_loss(*x).float())

    def widened(tree):
        return map_leaves(lambda x: x.double(), tree)

    wide = BilevelProblem(
        lambda w, a, b: single.inner_loss(widened(w), widened(a), b),
        lambda w, a, b: single.outer_loss(widened(w), widened(a), b),
    )
    w, a = (map_leaves(lambda x: x.float(), tree) for tree in (w, a))
    found = hypergradient(wide, w, a, batches, None, row.make(w))
    assert {x.dtype for x in leaves((found.value, found.direct, found.inner_gradient))} == {torch.float32}
    assert all(bool(x.isfinite().all()) for x in leaves(found.value))


@every
def test_calls_without_a_state_know_nothing_of_each_other(row):
    """No method hides anything: the same object gives the same bits again, as a new one does."""
    _, w, _, _ = logistic_problem()
    method = row.make(w)
    first, second = (call(row, method=method)[0] for _ in range(2))
    assert torch.equal(first.value["logit"], second.value["logit"])
    assert torch.equal(first.value["logit"], call(row)[0].value["logit"])
    assert (first.state is not None) == row.carries == (initial_state(method) is not None)


@carrying
def test_a_state_is_plain_data_that_another_object_goes_on_from(row, tmp_path):
    *before, last = call(row, 4)
    save_checkpoint(tmp_path / "state.pt", {"state": before[-1].state})
    (again,) = call(row, state=load_checkpoint(tmp_path / "state.pt")["state"])
    assert torch.equal(again.value["logit"], last.value["logit"])
    assert digest(plain(before[-1].state)) == digest(before[-1].state)


@carrying
def test_a_call_changes_no_state_that_it_was_given(row):
    first, second = call(row, 2)
    once_more, twice_more = (call(row, state=first.state)[0] for _ in range(2))
    assert torch.equal(second.value["logit"], once_more.value["logit"])
    assert torch.equal(second.value["logit"], twice_more.value["logit"])


@rows(lambda row: not hasattr(row.make(logistic_problem()[1]), "init"))
def test_a_state_of_a_method_that_has_none_is_refused(row):
    with pytest.raises(ValueError, match=r"carries none.*Unrolled\(optimizer, steps, state=...\)"):
        call(row, state={"step": 1})


# --- problems side by side -------------------------------------------------------------------------------------------


def tasks():
    """Small regressions with a learned per-sample weight and penalty, of different difficulty."""

    def net(w, x):
        return torch.tanh(x @ w["a"]) @ w["b"]

    def inner(w, a, batch):
        x, y = batch
        return (a["weight"].sigmoid() * (net(w, x) - y) ** 2).mean() + a["decay"].exp() * (w["b"] ** 2).sum()

    def outer(w, a, batch):
        x, y = batch
        return ((net(w, x) - y) ** 2).mean()

    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    w = [{"a": draw(3, 2), "b": draw(2)} for _ in range(PROBLEMS)]
    a = [{"weight": draw(6), "decay": 0.1 * draw(())} for _ in range(PROBLEMS)]
    inner_batches = [[(draw(6, 3), draw(6)) for _ in range(PROBLEMS)] for _ in range(2)]
    outer_batch = [(draw(5, 3), draw(5)) for _ in range(PROBLEMS)]
    return BilevelProblem(inner, outer), w, a, inner_batches, outer_batch


@rows(lambda row: row.batched is False)
def test_a_method_for_one_problem_says_so(row):
    problem, w, a, inner_batches, outer_batch = tasks()
    batches = [stack_trees(b) for b in inner_batches]
    with pytest.raises(ValueError, match=r"one (problem|system) at a time"):
        hypergradient(
            batched(problem), stack_trees(w), stack_trees(a), batches, stack_trees(outer_batch), row.make(w[0])
        )


@rows(lambda row: row.batched is True)
def test_batched_equals_the_loop(row):
    """Equal to rounding, also in the second call of a method that carries something."""
    problem, w, a, inner_batches, outer_batch = tasks()
    stacked = [stack_trees(x) for x in (w, a)]
    batches, last = [stack_trees(b) for b in inner_batches], stack_trees(outer_batch)
    states, together_state = [None] * PROBLEMS, None
    for _ in range(2 if row.carries else 1):
        loop = [
            hypergradient(
                problem, w[i], a[i], [b[i] for b in inner_batches], outer_batch[i], row.make(w[i]), state=states[i]
            )
            for i in range(PROBLEMS)
        ]
        together = hypergradient(batched(problem), *stacked, batches, last, row.make(w[0]), state=together_state)
        states, together_state = [r.state for r in loop], together.state
        for one, other in zip(loop, unstack_trees(together.value), strict=True):
            assert float((ravel(other) - ravel(one.value)).norm()) <= 1e-9 * float(ravel(one.value).norm())
        assert torch.allclose(together.outer_loss, torch.stack([r.outer_loss for r in loop]))
        for fact in ("inner_gradient_norm", "residual_norm", "minimum_curvature", "rho"):
            if fact in loop[0].stats:
                wanted = torch.stack([r.stats[fact] for r in loop])
                assert torch.allclose(together.stats[fact], wanted, rtol=1e-6, atol=1e-9, equal_nan=True), fact


# --- in a trainer ----------------------------------------------------------------------------------------------------


def trainer_of(row, folder=None):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    weights = torch.nn.Linear(1, 8, bias=False).double()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 1).double()
    named = dict(model.named_parameters())
    return BilevelTrainer(
        model,
        weights,
        inner_loss=lambda m, a, b: (a.weight.sigmoid()[b] * (m(x[b]) - y[b]).square()).mean(),
        outer_loss=lambda m, a, b: (m(x[b]) - 1.1 * y[b]).square().mean(),
        inner_batches=[torch.arange(5), torch.arange(3, 8)],
        outer_batches=[torch.arange(4), torch.arange(2, 8)],
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.05),
        outer_optimizer=torch.optim.Adam(weights.parameters(), 0.1),
        method=row.make({k: p.detach() for k, p in named.items()}),
        checkpoint=None if folder is None else folder / "checkpoint.pt",
        progress=False,
    )


@rows(lambda row: row.trains)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(row, tmp_path):
    whole = trainer_of(row)
    whole.fit(4)
    trainer_of(row, tmp_path).fit(2)
    resumed = trainer_of(row, tmp_path)
    assert resumed.resume()
    resumed.fit(4)
    for one, two in zip((whole.inner, whole.outer), (resumed.inner, resumed.outer), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_products_are_compared_once_and_then_chosen():
    """The first call compares, the next ones time, and what was settled on stays, in the state and nowhere else."""
    problem, w, a, batches = logistic_problem()
    method = RecomputedUnrolled(bilevel.sgd(0.1), 6)
    fixed = hypergradient(problem, w, a, batches, None, RecomputedUnrolled(bilevel.sgd(0.1), 6, "reverse"))
    found = hypergradient(problem, w, a, batches, None, method)
    settled = found.state["whole"]["settled"]
    assert settled in ("forward", "reverse")
    again = hypergradient(problem, w, a, batches, None, method, state=found.state)
    assert again.state["whole"]["settled"] == settled
    assert relative(again.value, fixed.value) < 1e-12


# --- the one door ----------------------------------------------------------------------------------------------------


def test_a_plain_function_of_the_signature_is_a_method():
    problem, w, a, batches = logistic_problem()
    inside = RecomputedUnrolled(bilevel.sgd(0.1), 2, "reverse")

    def method(problem, inner, outer, inner_batches, outer_batch):
        assert isinstance(inner_batches, list)
        return inside(problem, inner, outer, inner_batches, outer_batch)

    found = hypergradient(problem, w, a, iter(batches), None, method)
    assert torch.equal(found.value["logit"], hypergradient(problem, w, a, batches, None, inside).value["logit"])


def test_the_default_is_conjugate_gradients_unless_the_next_step_is_known():
    problem, w, a, _ = logistic_problem()

    def bowl(w, a, _):
        return (w["a"] - a["logit"][:3]).square().sum() + w["b"].square().sum()

    problem = BilevelProblem(bowl, problem.outer_loss)
    found, named = (hypergradient(problem, w, a, [None], None, method) for method in (None, "conjugate_gradient"))
    assert torch.equal(found.value["logit"], named.value["logit"])
    next_step = METHODS["next step"].make(w)
    assert resolve_method(None, next_step) is next_step
    assert resolve_method("minres", next_step) is resolve_method("minres")


def test_what_is_not_finite_is_raised_on_request():
    problem, w, a, batches = logistic_problem()
    broken = BilevelProblem(problem.inner_loss, lambda *args: problem.outer_loss(*args) * float("nan"))
    method = RecomputedUnrolled(bilevel.sgd(0.1), 2, "reverse")
    with pytest.raises(NotFiniteError, match=r"outer\['logit'\].*outer_loss"):
        hypergradient(broken, w, a, batches, None, method, throw=True)
    with pytest.warns(bilevel.HypergradientWarning, match=r"not finite in \[\"outer\['logit'\]"):
        hypergradient(broken, w, a, batches, None, method)
