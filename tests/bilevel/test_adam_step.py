"""Adam block by block is Adam composed of torch operations, and its graph keeps no float64 copies."""

import pytest
import torch

import bilevel
from bilevel import adam_step
from bilevel.inner_optimizers import composed_rules

RULES = {
    "adam": lambda: bilevel.adam(0.1),
    "l2": lambda: bilevel.adam(0.1, weight_decay=0.3, maximize=True),
    "adamw": lambda: bilevel.adamw(0.1, betas=(0.8, 0.9), weight_decay=0.3),
}


@pytest.mark.parametrize("block", [4, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_a_step_and_its_derivative_are_those_of_the_composed_operations(name, dtype, block, monkeypatch):
    """Three steps from zero moments, with gradients that are zero, on scalars, rows and channels-last weights."""
    monkeypatch.setattr(adam_step, "BLOCK", block)
    monkeypatch.setattr(adam_step, "LEAST", 0)
    g = torch.Generator().manual_seed(0)

    def tree(kind):
        drawn = {k: torch.randn(s, generator=g, dtype=dtype) for k, s in {"s": (), "m": (5, 3), "e": (0, 2)}.items()}
        drawn["c"] = torch.randn(4, 2, 3, 3, generator=g, dtype=dtype).to(memory_format=torch.channels_last)
        if kind == "grads":
            drawn["m"][1] = 0.0
        return drawn

    start, grads, ends = tree("w"), [tree("grads") for _ in range(3)], tree("w")

    def run():
        variables = [{k: x.clone().requires_grad_() for k, x in t.items()} for t in (start, *grads)]
        rule = RULES[name]()
        params, state = variables[0], rule.init(start)
        for slope in variables[1:]:
            updates, state = rule.update(slope, state, params=params)
            params = bilevel.inner_optimizers.apply_updates(params, updates)
        loss = sum((params[k] * ends[k]).sum() for k in params) + sum(x.sum() for x in state.mean.values())
        loss = loss + sum((x * x).sum() for x in state.square.values())
        wanted = [x for t in variables for x in t.values()]
        return [x.detach() for x in params.values()], torch.autograd.grad(loss, wanted)

    values, slopes = run()
    with composed_rules():
        wanted_values, wanted_slopes = run()
    # Rounding to the parameter's dtype in each of three steps, and float64 inside, where the adjoint of m / sqrt(v)
    # cancels terms of some 1e3 times its size.
    bound = 8 * torch.finfo(dtype).eps + 1e3 * torch.finfo(torch.float64).eps
    for found, wanted in zip((*values, *slopes), (*wanted_values, *wanted_slopes), strict=True):
        assert found.dtype == dtype
        assert float((found - wanted).norm()) <= bound * float(wanted.norm())


def test_the_graph_of_a_step_keeps_what_the_optimizer_holds_anyway():
    """Gradient and parameter in float32, two moments in float64: 24 bytes a number, of which 20 are new."""
    n = adam_step.LEAST
    kept = {}

    def note(x):
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    rule, w = bilevel.adam(0.1, weight_decay=0.1), torch.ones(n, requires_grad=True)
    grad = torch.ones(n, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        rule.update(grad, rule.init(w), params=w)
    assert sum(kept.values()) == 24 * n
