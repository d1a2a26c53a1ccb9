"""What learned weights cost: per training step, per weight update, and once for the clusters.

    python benchmarks/weight_costs.py --out benchmarks/results/weight-costs.md

Steps are timed on two networks: an MLP of 64-256-10 with 1000 samples a batch (about a millisecond a step, where every
extra operation shows) and the half-width ALCL-Net on eight crops of 128 x 128. `weighted` is a training step whose
losses are multiplied by a table of cluster weights; `update` is a whole outer step of `BilevelTrainer` with an exact
one-step unroll, by a graph of the inner gradient (`Unrolled`) or from a kept gradient and a forward-mode product
(`RecomputedUnrolled`). All are ratios to a plain step, the median over rounds in which all are timed one after the
other. Memory is counted: what the table, its gradient and Adam's moments hold.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import write_page
from timing import timed
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel import BilevelTrainer, RecomputedUnrolled, Schedule, Unrolled, sgd
from bilevel.reweighting import Clusters, TableWeights, UniformWeights
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.losses import bce_and_soft_iou
from istd.students import create_student
from istd.weights.descriptors import describe_image

CLUSTERS = 64


def mlp() -> tuple[nn.Module, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Network, inputs, targets, losses per sample."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, torch.randn(1000, 64), torch.arange(1000) % 10, lambda z, y: F.cross_entropy(z, y, reduction="none")


def student() -> tuple[nn.Module, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The same for a student of `istd`."""
    model = create_student("alcl", 0.5).to(memory_format=torch.channels_last)
    target = (torch.rand(8, 1, 128, 128) > 0.999).float()
    return model, torch.randn(8, 3, 128, 128), target, bce_and_soft_iou


def steps(make: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median ratios of a weighted step and of weight updates to a plain step, and the plain step's milliseconds."""
    torch.manual_seed(0)
    model, x, y, losses = make()
    index = torch.arange(len(x))

    def trainer(weights: nn.Module, method: Any = None) -> BilevelTrainer:
        learned = list(weights.parameters())
        return BilevelTrainer(
            model,
            weights,
            inner_loss=lambda m, w, b: (w(b[2]) * losses(m(b[0]), b[1])).mean() if learned else losses(m(x), y).mean(),
            outer_loss=lambda m, w, b: losses(m(b[0]), b[1]).mean(),
            inner_batches=[(x, y, index)] * 5,
            outer_batches=[(x, y, index)],
            inner_optimizer=torch.optim.SGD(model.parameters(), 1e-3),
            outer_optimizer=torch.optim.Adam(learned, 1e-3) if learned else None,
            method=method,
            schedule=Schedule(every=1_000_000),
            progress=False,
        )

    plain, weighted = trainer(UniformWeights()), trainer(TableWeights(index % CLUSTERS))

    def epoch(one: BilevelTrainer) -> Callable[[], object]:
        return lambda: one.fit(one.epoch + 1)

    def update(method: Any) -> Callable[[], object]:
        one = trainer(TableWeights(index % CLUSTERS), method)
        return lambda: one.outer_step([(x, y, index)], (x, y, index))

    rule = sgd(1e-3)
    calls = {
        "plain": epoch(plain),
        "weighted": epoch(weighted),
        "graph": update(Unrolled(rule, steps=1)),
        "kept": update(RecomputedUnrolled(rule, steps=1, products="forward")),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call) / (5 if name in ("plain", "weighted") else 1))
    unit = np.array(times["plain"])
    ratios = {name: float(np.median(np.array(times[name]) / unit)) for name in ("weighted", "graph", "kept")}
    return {"milliseconds": 1e3 * float(np.median(unit)), **ratios}


def clustering(samples: int = 100_000, dimensions: int = 64, k: int = 256) -> float:
    """Seconds to cluster standard normal features around k centres."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((k, dimensions))[rng.integers(k, size=samples)] * 3 + rng.standard_normal(
        (samples, dimensions)
    )
    started = time.perf_counter()
    Clusters.fit(x, k)
    return time.perf_counter() - started


def describing(images: int = 40) -> float:
    """Milliseconds to describe a 256 x 256 image, the median of one at a time."""
    scenes = synthetic_dataset(images, 1, 1, SceneConfig(size=256)).train
    describe_image(scenes[0].image)  # plans the transforms of this size
    return 1e3 * float(np.median([timed(lambda i=s.image: describe_image(i)) for s in scenes]))


def memory(samples: int, k: int) -> tuple[int, int]:
    """Bytes of the learned table with its gradient and Adam's moments, and of the index of every sample's group."""
    weights = TableWeights(torch.arange(samples) % k)
    optimizer = torch.optim.Adam(weights.parameters())
    weights(torch.arange(8)).square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    table = weights.logits
    states = [v for v in optimizer.state[table].values() if isinstance(v, Tensor) and v.ndim]
    assert table.grad is not None
    return sum(t.numel() * t.element_size() for t in (table, table.grad, *states)), weights.groups.numel() * 8


def report(rounds: int, samples: int, threads: Sequence[int]) -> str:
    """The markdown page."""
    lines = [
        "| network | threads | plain step, ms | weighted step | update, `Unrolled` | update, `RecomputedUnrolled` |"
    ]
    lines.append("|---" * 6 + "|")
    for name, make in (("MLP 64-256-10, 1000 samples", mlp), ("ALCL-Net x0.5, 8 x 128 x 128", student)):
        for count in threads:
            torch.set_num_threads(count)
            found = steps(make, rounds)
            cells = f"{found['weighted']:.3f} | {found['graph']:.2f} | {found['kept']:.2f}"
            lines.append(f"| {name} | {count} | {found['milliseconds']:.1f} | {cells} |")
    lines += ["", f"k-means, {samples:,} x 64 features, 256 clusters: {clustering(samples):.1f} s", ""]
    lines += [f"descriptors of a 256 x 256 image: {describing():.1f} ms", ""]
    lines += ["| samples | clusters | learned table, gradient, moments | index of groups |", "|---|---|---|---|"]
    for n, k in ((10_000, 64), (1_000_000, 64), (1_000_000, 1024)):
        table, index = memory(n, k)
        lines.append(f"| {n:,} | {k} | {table / 1024:.1f} KB | {index / 2**20:.2f} MB |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=100_000, help="rows to cluster")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, one table row each [1 2]")
    args = parser.parse_args()
    text = report(args.rounds, args.samples, args.threads)
    print(text)
    if args.out:
        note = f"`python benchmarks/weight_costs.py --out {args.out}`; median ratios."
        write_page(args.out, "What learned weights cost", note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
