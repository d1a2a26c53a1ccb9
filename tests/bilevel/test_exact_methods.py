"""Every method that claims to be exact, on random small networks, against `Unrolled` and finite differences."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import hypergradient, parameters_of, problem_from_modules
from bilevel.tree import ravel, unravel
from tests.bilevel.methods import ANOTHER_LENGTH, EXACT_FROM_A_POINT, FULL

CHANNELS, LENGTH, SAMPLES = 4, 5, 4
EXAMPLES = int(os.environ.get("EXACT_EXAMPLES", "10"))  # raise it for a longer search

# Maps of (B, CHANNELS, LENGTH) to itself; the activations are smooth, so that finite differences are derivatives.
NORMALISATIONS = {
    "batch": lambda: nn.BatchNorm1d(CHANNELS),
    "batch, eval": lambda: nn.BatchNorm1d(CHANNELS).eval(),
    "instance": lambda: nn.InstanceNorm1d(CHANNELS, affine=True),
    "layer": lambda: nn.LayerNorm(LENGTH),
    "group": lambda: nn.GroupNorm(2, CHANNELS),
    "rms": lambda: nn.RMSNorm(LENGTH),
    "local response": lambda: nn.LocalResponseNorm(2),
}
ACTIVATIONS = {
    name: getattr(nn, name) for name in ("Tanh", "GELU", "SiLU", "Softplus", "Sigmoid", "Mish", "LogSigmoid")
}


class Attention(nn.Module):
    """Self-attention over positions."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x):
        z = x.transpose(1, 2)
        return x + self.attention(z, z, z, need_weights=False)[0].transpose(1, 2)


MIXERS = {
    "linear": lambda: nn.Linear(LENGTH, LENGTH),
    "convolution": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    "attention": Attention,
}


class Network(nn.Module):
    """An embedding, blocks of a mixer, a normalisation and an activation, and a head; perhaps tied, perhaps frozen."""

    def __init__(self, blocks, tied, frozen):
        super().__init__()
        self.embedding = nn.Embedding(6, CHANNELS)
        parts = [[MIXERS[m](), NORMALISATIONS[n](), ACTIVATIONS[a]()] for m, n, a in blocks]
        self.blocks = nn.Sequential(*(part for block in parts for part in block))
        self.head = nn.Linear(CHANNELS, 6, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        if frozen:
            next(self.blocks.parameters()).requires_grad_(False)

    def forward(self, tokens):
        z = self.blocks(self.embedding(tokens).transpose(1, 2))
        return self.head(z.mean(2))


def problem_of(blocks, tied, frozen, early, seed):
    """Weighted losses over a random network; with `early` the weights also act before every layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, weights = Network(blocks, tied, frozen).double(), nn.Linear(1, SAMPLES, bias=False).double()
        tokens = torch.randint(0, 6, (2, SAMPLES, LENGTH))
        labels = torch.randint(0, 6, (2, SAMPLES))

    def inner(m, a, t):
        each = a.weight[:, 0].sigmoid()
        z = m.embedding(tokens[t]).transpose(1, 2)
        out = m.head(m.blocks(z * (1 + each[:, None, None]) if early else z).mean(2))
        return (each * F.cross_entropy(out, labels[t], reduction="none")).mean()

    def outer(m, a, _):
        return F.cross_entropy(m(tokens[0].flip(0)), labels[1])

    return problem_from_modules(model, weights, inner, outer), parameters_of(model), parameters_of(weights)


BLOCKS = st.lists(
    st.tuples(*(st.sampled_from(sorted(kinds)) for kinds in (MIXERS, NORMALISATIONS, ACTIVATIONS))),
    min_size=1,
    max_size=2,
)
RULES = {
    "sgd": bilevel.sgd(0.1),
    "momentum": bilevel.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    # At epsilon 1e-8 the update is the sign of the first gradient, which finite differences cannot follow.
    "adam": bilevel.adam(0.01, eps=1e-2),
    "adamw": bilevel.adamw(0.01, eps=1e-2),
}


@pytest.mark.slow  # ten networks by seven methods
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=BLOCKS,
    tied=st.booleans(),
    frozen=st.booleans(),
    early=st.booleans(),
    steps=st.integers(1, 5),
    rule=st.sampled_from(sorted(RULES)),
    seed=st.integers(0, 2**16),
)
def test_exact_methods_agree_with_the_full_unroll_and_finite_differences(
    blocks, tied, frozen, early, steps, rule, seed
):
    problem, w, a = problem_of(blocks, tied, frozen, early, seed)
    optimizer = RULES[rule]

    def run(method, outer=a, state=None):
        return hypergradient(problem, w, outer, [0, 1], None, method, state=state)

    full = run(FULL(optimizer, steps))
    scale = float(ravel(full.value).norm())
    # The same derivative in another order: some eps (2e-16) times the cancellation in normalisation, 1e3, and in Adam,
    # whose adjoint divides by 1e-2 once a step.
    bound = 1e-11 * (scale + float(ravel(full.inner_gradient).norm()))
    for name, make in EXACT_FROM_A_POINT.items():
        method = make(optimizer, steps)
        state = None
        for _ in range(2):  # compared or timed, then used
            found = run(method, state=state)
            state = found.state
            gap = float((ravel(found.value) - ravel(full.value)).norm())
            assert gap <= bound, (name, gap, scale)
    for name, make in ANOTHER_LENGTH.items():
        found = run(make(optimizer, steps))
        wanted = run(FULL(optimizer, found.stats["steps"]))
        assert float((ravel(found.value) - ravel(wanted.value)).norm()) <= bound, name

    direction = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def value(h):
        return float(run(FULL(optimizer, steps), unravel(ravel(a) + h * direction, a)).outer_loss)

    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    along = float(ravel(full.value) @ direction)
    # Fourth-order differences: (h / 1e-2)^4 = 1e-8 of the derivative where Adam bends within its epsilon, and rounding
    # of a loss of order one over h, 2e-12.
    assert along == pytest.approx(difference, rel=1e-6, abs=1e-10 + 1e-6 * scale)
