"""The benchmark problem of the field: hyper-cleaning of digits, with the peers that offer the same algorithm."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import Call, Case, carried, seconds
from torch import Tensor, nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    BilevelProblem,
    CheckpointedUnrolled,
    ConjugateGradient,
    Implicit,
    Neumann,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
)
from bilevel.tree import Tree, ravel


def cg_by_hand(matvec: Callable[[Tensor], Tensor], b: Tensor, count: int) -> Tensor:
    """The textbook loop."""
    value, residual = torch.zeros_like(b), b
    direction, squared = b, b.dot(b)
    for _ in range(count):
        product = matvec(direction)
        step = squared / direction.dot(product)
        value, residual = value + step * direction, residual - step * product
        previous, squared = squared, residual.dot(residual)
        direction = residual + squared / previous * direction
    return value


@dataclass
class Digits:
    """Hyper-cleaning: 1000 digits with 40 % random labels, MLP 64-256-10, one weight per sample."""

    x: Tensor
    y: Tensor
    z: Tensor
    t: Tensor

    @classmethod
    def load(cls, dtype: torch.dtype = torch.float32) -> "Digits":
        """From scikit-learn, seeded."""
        from sklearn.datasets import load_digits

        data = load_digits()
        g = torch.Generator().manual_seed(0)
        order = torch.randperm(len(data.target), generator=g)
        x, y = torch.as_tensor(data.data / 16.0, dtype=dtype)[order], torch.as_tensor(data.target)[order]
        noisy = y[:1000].clone()
        wrong = torch.rand(1000, generator=g) < 0.4
        noisy[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=g)
        return cls(x[:1000], noisy, x[1000:1500], y[1000:1500])

    def start(self, seed: int = 0) -> Tree:
        """The same weights in every dtype."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        return {name.replace(".", "_"): p.detach().to(self.x.dtype) for name, p in model.named_parameters()}

    @staticmethod
    def net(w: Tree, x: Tensor) -> Tensor:
        """Logits."""
        return F.linear(F.relu(F.linear(x, w["0_weight"], w["0_bias"])), w["2_weight"], w["2_bias"])

    def inner(self, w: Tree, a: Tensor, _: Any) -> Tensor:
        """Weighted cross-entropy."""
        return (a.sigmoid() * F.cross_entropy(self.net(w, self.x), self.y, reduction="none")).mean()

    def outer(self, w: Tree, a: Tensor, _: Any) -> Tensor:
        """Clean cross-entropy."""
        return F.cross_entropy(self.net(w, self.z), self.t)


RULES: dict[str, tuple[Any, Any]] = {
    "sgd": (bilevel.sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "adam": (bilevel.adam(1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
    "adam+l2": (
        bilevel.adam(1e-3, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-3),
    ),
}


STARTS = 5  # float32 errors through Adam depend on the start: where |g| is near eps, its rounding is amplified


def digits(rule: str, steps: int, seed: int = 0) -> Case:
    """Unrolled and implicit methods on hyper-cleaning, from a seeded start."""
    data = Digits.load()
    problem, w, a = BilevelProblem(data.inner, data.outer), data.start(seed), torch.zeros(1000)
    ours_rule, torch_rule = RULES[rule]

    def truth() -> Tensor:
        double = Digits.load(torch.float64)
        exact = BilevelProblem(double.inner, double.outer)
        method = RecomputedUnrolled(ours_rule, steps, "reverse")
        found: Tensor = hypergradient(exact, double.start(seed), a.double(), [None], None, method).value
        return found

    def train() -> Tree:
        p = {k: v.clone().requires_grad_() for k, v in w.items()}
        optimizer = torch_rule(list(p.values()))
        for _ in range(steps):
            optimizer.zero_grad()
            data.inner(p, a, None).backward()
            optimizer.step()
        return {k: v.detach() for k, v in p.items()}

    def ours(method: Any) -> Call:
        return carried(lambda state: hypergradient(problem, w, a, [None], None, method, state=state))

    def implicit(method: Any) -> Call:
        return lambda: hypergradient(problem, train(), a, [None], None, method).value

    def cg() -> Tensor:
        p = {k: v.clone().requires_grad_() for k, v in train().items()}
        names, e = list(p.values()), a.clone().requires_grad_()
        goal = ravel(list(torch.autograd.grad(data.outer(p, e, None), names)))
        slope = torch.autograd.grad(data.inner(p, e, None), names, create_graph=True)
        shapes = [v.shape for v in names]

        def split(u: Tensor) -> list[Tensor]:
            return [c.view(s) for c, s in zip(u.split([s.numel() for s in shapes]), shapes, strict=True)]

        def matvec(u: Tensor) -> Tensor:
            return ravel(list(torch.autograd.grad(slope, names, split(u), retain_graph=True)))

        return -torch.autograd.grad(slope, e, split(cg_by_hand(matvec, goal, 20)))[0]

    def unroll_by_hand() -> Tensor:
        e = a.clone().requires_grad_()
        p = {k: v.clone().requires_grad_() for k, v in w.items()}
        for _ in range(steps):
            grads = torch.autograd.grad(data.inner(p, e, None), list(p.values()), create_graph=True)
            p = {k: v - 0.1 * g for (k, v), g in zip(p.items(), grads, strict=True)}
        return torch.autograd.grad(data.outer(p, e, None), e)[0]

    solve = ConjugateGradient(20, rtol=0.0)
    calls: dict[tuple[str, str], Call] = {
        ("bilevel", "full unroll"): ours(Unrolled(ours_rule, steps)),
        ("bilevel", "recomputed"): ours(RecomputedUnrolled(ours_rule, steps)),
        ("bilevel", "checkpointed"): ours(CheckpointedUnrolled(ours_rule, steps)),
        ("bilevel", "checkpointed, every 3"): ours(CheckpointedUnrolled(ours_rule, steps, 3)),
        ("bilevel", "truncated, last 5"): ours(TruncatedUnrolled(ours_rule, steps, min(5, steps))),
        ("bilevel", "CG, 20"): implicit(Implicit(solve, warn=False)),
        ("bilevel", "Neumann, 20"): implicit(Implicit(Neumann(20, 0.1), warn=False)),
        ("by hand", "CG, 20"): cg,
    }
    if rule == "sgd":
        calls["by hand", "full unroll"] = unroll_by_hand
    calls |= _higher(data, w, a, torch_rule, steps) | _torchopt(data, w, a, rule, steps)

    def parts() -> tuple[float, float]:
        """Seconds of a gradient with its graph and one product with all second derivatives, and of one more product."""
        p, e = {k: v.clone().requires_grad_() for k, v in w.items()}, a.clone().requires_grad_()
        names = list(p.values())
        vector = [torch.randn_like(v) for v in names]

        def first() -> Any:
            return torch.autograd.grad(data.inner(p, e, None), names, create_graph=True)

        def both() -> None:
            torch.autograd.grad(first(), [*names, e], vector)

        slope = first()
        return seconds(both, 20), seconds(lambda: torch.autograd.grad(slope, names, vector, retain_graph=True), 20)

    def unroll_floor() -> float:
        return steps * parts()[0]

    def recomputed_floor() -> float:
        return seconds(train, 3) + steps * parts()[0]

    def implicit_floor() -> float:
        both, product = parts()
        return seconds(train, 3) + both + 20 * product

    floors = {
        "full unroll": unroll_floor,
        "recomputed": recomputed_floor,
        "checkpointed": recomputed_floor,
        "checkpointed, every 3": recomputed_floor,
        "CG, 20": implicit_floor,
    }
    unrolls = frozenset({"full unroll", "recomputed", "checkpointed", "checkpointed, every 3", "truncated, last 5"})
    others = [] if seed else [partial(digits, rule, steps, s) for s in range(1, STARTS)]
    return Case(train, calls, truth, floors, unrolls, others)


def _higher(data: Digits, w: Tree, a: Tensor, optimizer: Any, steps: int) -> dict[tuple[str, str], Call]:
    try:
        import higher
    except ImportError:
        return {}

    def run() -> Tensor:
        model = _module(w)
        e = a.clone().requires_grad_()
        with higher.innerloop_ctx(model, optimizer(list(model.parameters()))) as (functional, inner):
            for _ in range(steps):
                losses = F.cross_entropy(functional(data.x), data.y, reduction="none")
                inner.step((e.sigmoid() * losses).mean())
            return torch.autograd.grad(F.cross_entropy(functional(data.z), data.t), e)[0]

    return {("higher", "full unroll"): run}


def _torchopt(data: Digits, w: Tree, a: Tensor, rule: str, steps: int) -> dict[tuple[str, str], Call]:
    try:
        import torchopt
    except ImportError:
        return {}

    def run() -> Tensor:
        model = _module(w)
        e = a.clone().requires_grad_()
        if rule == "sgd":
            inner: Any = torchopt.MetaSGD(model, lr=0.1)
        else:
            inner = torchopt.MetaAdam(model, lr=1e-3, weight_decay=1e-3 if rule == "adam+l2" else 0.0)
        for _ in range(steps):
            losses = F.cross_entropy(model(data.x), data.y, reduction="none")
            inner.step((e.sigmoid() * losses).mean())
        return torch.autograd.grad(F.cross_entropy(model(data.z), data.t), e)[0]

    return {("torchopt", "full unroll"): run}


def _module(w: Tree) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    model.load_state_dict({k.replace("_", ".", 1): v for k, v in w.items()})
    return model
