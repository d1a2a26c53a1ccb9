"""The problems of `benchmarks/hypergradients.py`: what is timed, against which truth, beside which floor and peers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from hyper_cleaning import Digits, cg_by_hand, digits
from timing import Call, Case, carried, seconds
from torch import Tensor, nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    BilevelProblem,
    CheckpointedUnrolled,
    ConjugateGradient,
    ForwardUnrolled,
    Identity,
    Implicit,
    Neumann,
    RecomputedUnrolled,
    Unrolled,
    batched,
    hypergradient,
)
from bilevel.batched import stack_trees
from bilevel.modules import parameters_of, problem_from_modules
from bilevel.products import reverse_over_forward, reverse_over_reverse
from bilevel.tree import Tree, as_variables, ravel


def ridge(steps: int = 100) -> Case:
    """Ridge, d = 200, n = 500, one log-penalty per feature, float64; implicit methods stand at the exact minimum."""
    g = torch.Generator().manual_seed(0)
    n, d, k = 500, 200, 20
    x, z = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    y, t = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(2))
    a = 0.1 * torch.randn(d, generator=g, dtype=torch.float64)

    def inner(w: Tensor, a: Tensor, _: Any) -> Tensor:
        return ((x @ w - y) ** 2).mean() / 2 + (a.exp() * w**2).sum() / 2

    def outer(w: Tensor, a: Tensor, _: Any) -> Tensor:
        return ((z @ w - t) ** 2).mean() / 2

    hessian = x.T @ x / n + torch.diag(a.exp())
    w = torch.linalg.solve(hessian, x.T @ y / n)
    exact = -(a.exp() * w) * torch.linalg.solve(hessian, z.T @ (z @ w - t) / n)
    problem = BilevelProblem(inner, outer)
    step = 1 / float(torch.linalg.eigvalsh(hessian)[-1])

    def plain() -> None:
        p = torch.zeros(d, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([p], step)
        for _ in range(steps):
            optimizer.zero_grad()
            inner(p, a, None).backward()
            optimizer.step()

    def by_hand() -> Tensor:
        v, p = w.clone().requires_grad_(), a.clone().requires_grad_()
        goal = torch.autograd.grad(outer(v, p, None), v)[0]
        slope = torch.autograd.grad(inner(v, p, None), v, create_graph=True)[0]
        solution = cg_by_hand(lambda u: torch.autograd.grad(slope, v, u, retain_graph=True)[0], goal, k)
        return -torch.autograd.grad(slope, p, solution)[0]

    def ours(method: Any, start: Tensor = w) -> Call:
        return carried(lambda state: hypergradient(problem, start, a, [None], None, method, state=state))

    calls: dict[tuple[str, str], Call] = {
        ("bilevel", "CG, 20"): ours(Implicit(ConjugateGradient(k, rtol=0.0), warn=False)),
        ("by hand", "CG, 20"): by_hand,
        ("bilevel", "CG to 1e-10"): ours(Implicit(ConjugateGradient(100, rtol=1e-10))),
        ("bilevel", "MINRES, 20"): ours(Implicit(bilevel.MINRES(k, rtol=0.0), warn=False)),
        ("bilevel", "GMRES, 20"): ours(Implicit(bilevel.GMRES(k, rtol=0.0), warn=False)),
        ("bilevel", "Neumann, 20"): ours(Implicit(Neumann(k, step), warn=False)),
        ("bilevel", "Nystrom, 20"): ours(Implicit(bilevel.Nystrom(k, 1.0), warn=False)),
        ("bilevel", "dense"): ours(Implicit(bilevel.Dense())),
        ("bilevel", "identity"): ours(Implicit(Identity(step), warn=False)),
        ("bilevel", "finite difference"): ours(bilevel.FiniteDifference(step)),
        ("bilevel", "rank-one GN, far (w = 0)"): ours(bilevel.RankOneGaussNewton(), torch.zeros_like(w)),
        ("bilevel", "unroll, 100"): ours(Unrolled(bilevel.sgd(step), steps), torch.zeros_like(w)),
        ("bilevel", "F2SA, l = 100"): ours(bilevel.F2SA(bilevel.sgd(step), steps, penalty=100.0)),
        ("bilevel", "MESO, c = 100, 100 rounds"): ours(
            bilevel.MESO(step / 2, step / 2, rounds=steps, penalty=100.0, power=0.0)
        ),
    }

    def floor() -> float:
        v, p = w.clone().requires_grad_(), a.clone().requires_grad_()
        slope = torch.autograd.grad(inner(v, p, None), v, create_graph=True)[0]
        product = seconds(lambda: torch.autograd.grad(slope, v, w, retain_graph=True), 20)
        mixed = seconds(lambda: torch.autograd.grad(slope, p, w, retain_graph=True), 20)
        first = seconds(lambda: torch.autograd.grad(inner(v, p, None), v, create_graph=True), 20)
        return k * product + mixed + first + seconds(lambda: torch.autograd.grad(outer(v, p, None), v), 20)

    exact_methods = frozenset(m for _, m in calls)
    return Case(plain, calls, lambda: exact, {"CG, 20": floor}, exact_methods)


def convolutions(steps: int = 4) -> Case:
    """Four 32-channel convolutions with BatchNorm in training mode, 64x64, batch 8."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 32, 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(32, 1, 1))
    weights = nn.Linear(1, 8, bias=False)
    x, y = torch.randn(8, 3, 64, 64), (torch.rand(8, 1, 64, 64) < 0.01).float()

    def inner(m: Any, a: Any, batch: Any) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(m(batch[0]), batch[1], reduction="none").mean((1, 2, 3))
        return (a.weight[:, 0].sigmoid() * losses).mean()

    def outer(m: Any, a: Any, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(batch[0].flip(0)), batch[1].flip(0))

    problem = problem_from_modules(model, weights, inner, outer)
    w, a = parameters_of(model), parameters_of(weights)
    rule = bilevel.sgd(0.1)

    def truth() -> Tensor:
        # The full unroll in float64, of the same network and data.
        double = copy.deepcopy((model, weights))
        for module in double:
            module.double()

        def widen(loss: Any) -> Any:
            return lambda m, a, b: loss(m, a, (x.double(), y.double()))

        exact = problem_from_modules(*double, widen(inner), widen(outer))
        trees = [parameters_of(module) for module in double]
        return ravel(hypergradient(exact, *trees, [None], None, Unrolled(rule, steps)).value)

    def plain() -> None:
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            inner(trained, weights, (x, y)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def ours(method: Any) -> Call:
        call = carried(lambda state: hypergradient(problem, w, a, [(x, y)], (x, y), method, state=state))
        return lambda: ravel(call())

    calls: dict[tuple[str, str], Call] = {
        ("bilevel", "full unroll"): ours(Unrolled(rule, steps)),
        ("bilevel", "recomputed (auto)"): ours(RecomputedUnrolled(rule, steps)),
        ("bilevel", "recomputed (reverse over reverse)"): ours(RecomputedUnrolled(rule, steps, "reverse")),
        ("bilevel", "recomputed (reverse over forward)"): ours(RecomputedUnrolled(rule, steps, "forward")),
        ("bilevel", "checkpointed"): ours(CheckpointedUnrolled(rule, steps)),
        ("bilevel", "forward mode, 8 outer"): ours(ForwardUnrolled(rule, steps)),
    }
    try:
        import higher

        def theirs() -> Tensor:
            e = a["weight"].clone().requires_grad_()
            with higher.innerloop_ctx(model, torch.optim.SGD(model.parameters(), 0.1)) as (functional, diff):
                for _ in range(steps):
                    losses = F.binary_cross_entropy_with_logits(functional(x), y, reduction="none").mean((1, 2, 3))
                    diff.step((e[:, 0].sigmoid() * losses).mean())
                loss = F.binary_cross_entropy_with_logits(functional(x.flip(0)), y.flip(0))
                return torch.autograd.grad(loss, e)[0].reshape(-1)

        calls["higher", "full unroll"] = theirs
    except ImportError:
        pass

    variables, outer_variables = as_variables(w), as_variables(a)
    vector = {k: torch.randn_like(v) for k, v in w.items()}

    def loss(w: Tree, a: Tree) -> Tensor:
        return problem.inner_loss(w, a, (x, y))

    def unroll_floor() -> float:
        return steps * seconds(lambda: reverse_over_reverse(loss, variables, outer_variables, vector))

    def recomputed_floor() -> float:
        products = (reverse_over_reverse, reverse_over_forward)
        quickest = min(seconds(lambda p=p: p(loss, variables, outer_variables, vector)) for p in products)
        return seconds(plain, 3) + steps * quickest

    floors = {"full unroll": unroll_floor, "recomputed (auto)": recomputed_floor, "checkpointed": recomputed_floor}
    return Case(plain, calls, truth, floors, frozenset(m for _, m in calls))


def many(problems: int = 32, steps: int = 20) -> Case:
    """32 small regressions, one call against a loop; the unit is a loop of plain steps over all of them."""
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(problems, 50, 8, generator=g) for _ in range(2))
    y, t = (torch.randn(problems, 50, generator=g) for _ in range(2))
    w = {"a": torch.randn(problems, 8, 16, generator=g) / 3, "b": torch.randn(problems, 16, generator=g) / 4}
    a = torch.zeros(problems, 50)

    def net(w: Tree, x: Tensor) -> Tensor:
        return torch.tanh(x @ w["a"]) @ w["b"]

    problem = BilevelProblem(
        lambda w, a, b: (a.sigmoid() * (net(w, b[0]) - b[1]) ** 2).mean() + 0.1 * (w["b"] ** 2).sum(),
        lambda w, a, b: ((net(w, b[0]) - b[1]) ** 2).mean(),
    )

    def task(i: int) -> tuple[Any, ...]:
        return {k: v[i] for k, v in w.items()}, a[i], [(x[i], y[i])], (z[i], t[i])

    def plain() -> None:
        for i in range(problems):
            p = {k: v[i].clone().requires_grad_() for k, v in w.items()}
            optimizer = torch.optim.SGD(list(p.values()), 0.1)
            for _ in range(steps):
                optimizer.zero_grad()
                problem.inner_loss(p, a[i], (x[i], y[i])).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def loop(method: Any) -> Call:
        return lambda: stack_trees([hypergradient(problem, *task(i), method).value for i in range(problems)])

    def together(method: Any) -> Call:
        return lambda: hypergradient(batched(problem), w, a, [(x, y)], (z, t), method).value

    def by_hand() -> Tensor:
        out = []
        for i in range(problems):
            e, p = a[i].clone().requires_grad_(), {k: v[i].clone().requires_grad_() for k, v in w.items()}
            for _ in range(steps):
                grads = torch.autograd.grad(problem.inner_loss(p, e, (x[i], y[i])), list(p.values()), create_graph=True)
                p = {k: v - 0.1 * s for (k, v), s in zip(p.items(), grads, strict=True)}
            out.append(torch.autograd.grad(problem.outer_loss(p, e, (z[i], t[i])), e)[0])
        return torch.stack(out)

    unroll, solve = Unrolled(bilevel.sgd(0.1), steps), Implicit(ConjugateGradient(steps, rtol=0.0, damping=1.0), False)
    calls: dict[tuple[str, str], Call] = {
        ("bilevel", "unroll, one call"): together(unroll),
        ("bilevel", "unroll, loop"): loop(unroll),
        ("by hand", "unroll, loop"): by_hand,
        ("bilevel", "CG, one call"): together(solve),
        ("bilevel", "CG, loop"): loop(solve),
    }
    try:
        import torchopt

        class Net(nn.Module):
            def __init__(self, i: int) -> None:
                super().__init__()
                self.a, self.b = nn.Parameter(w["a"][i].clone()), nn.Parameter(w["b"][i].clone())

            def forward(self, x: Tensor) -> Tensor:
                return torch.tanh(x @ self.a) @ self.b

        def theirs() -> Tensor:
            out = []
            for i in range(problems):
                model, e = Net(i), a[i].clone().requires_grad_()
                inner = torchopt.MetaSGD(model, lr=0.1)
                for _ in range(steps):
                    loss = (e.sigmoid() * (model(x[i]) - y[i]) ** 2).mean() + 0.1 * (model.b**2).sum()
                    inner.step(loss)
                out.append(torch.autograd.grad(((model(z[i]) - t[i]) ** 2).mean(), e)[0])
            return torch.stack(out)

        calls["torchopt", "unroll, loop"] = theirs
    except ImportError:
        pass
    return Case(plain, calls, loop(unroll), {}, frozenset(m for _, m in calls if m.startswith("unroll")))


def trainer() -> Case:
    """BilevelTrainer over a hand-written loop of the same operations; the unit is the hand-written loop."""
    data = Digits.load()
    batches = [(torch.arange(i, i + 200),) for i in range(0, 1000, 200)] * 4
    rule = Unrolled(bilevel.sgd(0.1), 1)

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(1000))

        def forward(self, index: Tensor) -> Tensor:
            return self.logits[index].sigmoid()

    def inner(m: Any, a: Any, batch: Any) -> Tensor:
        (i,) = batch
        return torch.mean(a(i) * F.cross_entropy(m(data.x[i]), data.y[i], reduction="none"))

    def outer(m: Any, a: Any, batch: Any) -> Tensor:
        return F.cross_entropy(m(data.z), data.t)

    def make() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model, weights = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), Weights()
        return model, weights, torch.optim.Adam(model.parameters(), 1e-3), torch.optim.Adam(weights.parameters(), 0.1)

    def ours() -> None:
        model, weights, fast, slow = make()
        bilevel.BilevelTrainer(
            model,
            weights,
            inner_loss=inner,
            outer_loss=outer,
            inner_batches=batches,
            outer_batches=[None],
            inner_optimizer=fast,
            outer_optimizer=slow,
            method=rule,
            schedule=bilevel.Schedule(every=1, steps=5),
            progress=False,
        ).fit(5)

    def by_hand() -> None:
        model, weights, fast, slow = make()
        problem = problem_from_modules(model, weights, inner, outer)
        taken = 0
        for _ in range(5):
            total = torch.zeros(())
            for batch in batches:
                loss = inner(model, weights, batch)
                fast.zero_grad()
                loss.backward(inputs=list(model.parameters()))  # type: ignore[no-untyped-call]
                fast.step()
                total += loss.detach()
            float(total)
            for _ in range(5):
                taken += 1
                w, a = parameters_of(model), parameters_of(weights)
                found = rule(problem, w, a, [batches[taken % len(batches)]], None)
                weights.logits.grad = found.value["logits"]
                slow.step()

    return Case(by_hand, {("bilevel", "BilevelTrainer"): ours, ("by hand", "the same operations"): by_hand})


PROBLEMS: dict[str, Callable[[], Case]] = {
    "ridge d=200 n=500 float64": ridge,
    **{
        f"digits, {rule}, T={t}": (lambda r=rule, t=t: digits(r, t))
        for rule in ("sgd", "adam", "adam+l2")
        for t in (10, 50, 200)
    },
    "conv+BatchNorm, T=4": convolutions,
    "32 problems, T=20": many,
    "trainer": trainer,
}
QUICK = ("ridge d=200 n=500 float64", "digits, sgd, T=10", "digits, adam, T=10", "32 problems, T=20")
