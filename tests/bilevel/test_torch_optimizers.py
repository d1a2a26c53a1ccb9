"""from_torch and NextStep: the twin takes the very step that the torch optimizer takes next, whatever its groups."""

import pytest
import torch
from torch import nn

import bilevel
from bilevel import NextStep, Unrolled, from_torch, hypergradient, parameters_of, problem_from_modules
from bilevel.inner_optimizers import apply_updates
from bilevel.reweighting import TableWeights


class Branches(nn.Module):
    """Three layers, of which a loss may use some."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4).double(), nn.Linear(4, 2).double(), nn.Linear(3, 2).double()

    def forward(self, x, extra=False):
        y = self.b(self.a(x).tanh())
        return y + self.c(x) if extra else y


def groups(model, **second):
    return [{"params": [*model.a.parameters(), *model.c.parameters()]}, {"params": model.b.parameters(), **second}]


MAKE = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1),
    "sgd, decay": lambda m: torch.optim.SGD(m.parameters(), 0.1, weight_decay=0.3),
    "momentum, decay": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.3),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
    "adam, decay": lambda m: torch.optim.Adam(m.parameters(), 0.05, weight_decay=0.3),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.05, weight_decay=0.3),
    "sgd, groups": lambda m: torch.optim.SGD(groups(m, lr=0.01, momentum=0.0, weight_decay=0.5), 0.1, momentum=0.9),
    "adam, groups": lambda m: torch.optim.Adam(groups(m, lr=0.01, betas=(0.5, 0.9), eps=1e-3), 0.05),
    "adamw, groups": lambda m: torch.optim.AdamW(groups(m, weight_decay=0.0, maximize=True), 0.05, weight_decay=0.3),
    "learning rate as a tensor": lambda m: torch.optim.SGD(m.parameters(), torch.tensor(0.1, dtype=torch.float64)),
}
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(model, extra, i=0):
    return model(X.roll(i, 0), extra).square().mean() + model.a.weight.sum() * 0.1


# Whether the layer c takes part: never, in the second step only, from the third step on, in all but the last, always.
USE = {
    "never": [False] * 4,
    "once": [False, True, False, False],
    "late": [False, False, True, True],
    "not now": [True, True, True, False],
    "always": [True] * 4,
}


@pytest.mark.parametrize("use", USE)
@pytest.mark.parametrize("name", MAKE)
def test_the_twin_takes_the_step_that_the_optimizer_takes_next(name, use):
    """Three real steps, then the fourth on both sides, to the rounding of a few operations in float64.

    The last backward pass says which parameters take part, so before the fourth step its own has run.
    """
    torch.manual_seed(0)
    model = Branches()
    optimizer = MAKE[name](model)
    for i, extra in enumerate(USE[use]):
        optimizer.zero_grad()
        loss(model, extra, i).backward()
        if i < 3:
            optimizer.step()
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    rule, state = from_torch(optimizer, dict(model.named_parameters()))
    grads = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}
    updates, _ = rule.update(grads, state, params=params)
    moved = apply_updates(params, updates)
    optimizer.step()
    for k, p in model.named_parameters():
        assert torch.allclose(moved[k], p.detach(), rtol=1e-13, atol=1e-14), k


def test_without_gradients_the_states_say_which_parameters_are_used():
    torch.manual_seed(0)
    model = Branches()
    optimizer = MAKE["momentum, decay"](model)
    loss(model, False).backward()
    optimizer.step()
    optimizer.zero_grad()
    rule, state = from_torch(optimizer, dict(model.named_parameters()))
    params = parameters_of(model)
    updates, _ = rule.update({k: torch.ones_like(p) for k, p in params.items()}, state, params=params)
    assert [k for k, u in updates.items() if not u.any()] == ["c.weight", "c.bias"]


def problem_of(model, weights):
    def inner(m, w, rows):
        return (w(rows) * m(X[rows]).square().sum(1)).mean()

    return problem_from_modules(model, weights, inner, lambda m, w, b: m(X).sin().mean())


@pytest.mark.parametrize("name", MAKE)
def test_next_step_is_the_derivative_of_the_real_next_step(name):
    """Central differences of F after the optimizer's own fourth step, at four numbers of the outer variables."""
    rows = torch.arange(6)

    def run(shift):
        torch.manual_seed(0)
        model, weights = Branches(), TableWeights.per_sample(6).double()
        optimizer = MAKE[name](model)
        for t in range(4):
            if t == 3:
                found = hypergradient(
                    problem_of(model, weights),
                    parameters_of(model),
                    parameters_of(weights),
                    [rows],
                    None,
                    NextStep(optimizer, dict(model.named_parameters())),
                )
                with torch.no_grad():
                    weights.logits += shift
            optimizer.zero_grad()
            problem = problem_of(model, weights)
            value = problem.inner_loss(dict(model.named_parameters()), parameters_of(weights), rows)
            value.backward()
            optimizer.step()
        return float(model(X).sin().mean().detach()), found

    direction = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 1e-4
    difference = (run(h * direction)[0] - run(-h * direction)[0]) / (2 * h)
    found = run(0 * direction)[1]
    # O(h^2) truncation and 1e-16 / h rounding, both beside numbers of order 1e-3 and more.
    assert float(found.value["logits"] @ direction) == pytest.approx(difference, rel=1e-5, abs=1e-10)


def test_next_step_reads_rates_and_moments_at_every_call():
    torch.manual_seed(0)
    model, weights = Branches(), TableWeights.per_sample(6).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = NextStep(optimizer, dict(model.named_parameters()))
    given = problem_of(model, weights), parameters_of(model), parameters_of(weights), [torch.arange(6)], None
    for lr in (0.1, 0.02):
        optimizer.param_groups[0]["lr"] = lr
        exact = hypergradient(*given, Unrolled(bilevel.sgd(lr))).value["logits"]
        assert torch.equal(hypergradient(*given, method).value["logits"], exact)


def test_an_optimizer_that_cannot_be_unrolled_asks_for_a_method_by_name():
    model = Branches()
    method = NextStep(torch.optim.RMSprop(model.parameters()), dict(model.named_parameters()))
    with pytest.raises(ValueError, match=r"next step of RMSprop cannot be differentiated.*method=Unrolled"):
        method.twin(parameters_of(model))
