"""Strategies of sample weights, beside each other, on tasks whose wrong labels are known.

    python benchmarks/reweighting.py --out benchmarks/results
    python benchmarks/reweighting.py --quick --json rows.json   (two tasks, two seeds)

Every strategy trains the same network for the same number of steps. `score` is the balanced accuracy on the test set in
percent, `auroc` how well the final weights separate right from wrong labels (0.5: not at all), `seconds_ratio` the time
of a run over that of uniform weights with the same seed. A strategy is one entry of `STRATEGIES`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noisy_tasks import TASKS, Task
from scipy.stats import rankdata, wilcoxon
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from bilevel import BilevelTrainer, GaussNewton, Schedule, Unrolled, sgd
from bilevel.checkpoint import write_atomically
from bilevel.reweighting import (
    ClassWeights,
    ClusterWeights,
    FeatureNetworkWeights,
    FocalWeights,
    LossNetworkWeights,
    OnlineWeights,
    SelfPacedWeights,
    SmallLossWeights,
    TableWeights,
    UniformWeights,
)

LR, EPOCHS, BATCH = 0.1, 60, 100


@dataclass(frozen=True)
class Strategy:
    """How to make the weights of a task, and how they are learned.

    Attributes:
        make: `make(task, model) -> weights`.
        outer_lr: learning rate of the outer variables.
        method: hypergradient method.
    """

    make: Callable[[Task, nn.Module], nn.Module]
    outer_lr: float = 0.1
    method: Any = field(default_factory=lambda: Unrolled(sgd(LR), steps=1))


def _clean_loss(task: Task, model: nn.Module) -> Callable[[], torch.Tensor]:
    return lambda: F.cross_entropy(model(task.clean[0]), task.clean[1])


def _clusters(task: Task, model: nn.Module) -> nn.Module:
    return ClusterWeights.fit(task.x, min(25, len(task.x) // 4), bound=3.0)


def _per_sample(task: Task, model: nn.Module) -> nn.Module:
    return TableWeights.per_sample(len(task.x), bound=3.0)


STRATEGIES: dict[str, Strategy] = {
    "uniform": Strategy(lambda t, m: UniformWeights()),
    "per sample": Strategy(_per_sample, 0.3),
    "per class": Strategy(lambda t, m: TableWeights(t.given, bound=3.0)),
    "per cluster": Strategy(_clusters),
    "per cluster, rank-one": Strategy(_clusters, method=GaussNewton()),
    "per cluster, rank-one as published": Strategy(_clusters, method=GaussNewton(as_published=True, step_size=LR)),
    "meta-weight-net": Strategy(lambda t, m: LossNetworkWeights(), 0.01),
    "feature network": Strategy(lambda t, m: FeatureNetworkWeights(t.x, bound=3.0), 0.01),
    "L2RW": Strategy(lambda t, m: OnlineWeights(_clean_loss(t, m), m.parameters())),
    "inverse frequency": Strategy(lambda t, m: ClassWeights(t.given)),
    "effective number": Strategy(lambda t, m: ClassWeights(t.given, 0.99)),
    "focal": Strategy(lambda t, m: FocalWeights()),
    "small loss": Strategy(lambda t, m: SmallLossWeights(0.4)),
    "self-paced": Strategy(lambda t, m: SelfPacedWeights()),
}


def inner_loss(model: Any, weights: Any, batch: Any) -> torch.Tensor:
    """Weighted cross-entropy on given labels."""
    x, y, index = batch
    losses = F.cross_entropy(model(x), y, reduction="none")
    return torch.mean(weights(index, losses) * losses)


def outer_loss(model: Any, weights: Any, batch: Any) -> torch.Tensor:
    """Cross-entropy on trusted labels."""
    return F.cross_entropy(model(batch[0]), batch[1])


def run(task: Task, strategy: Strategy, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; score, AUROC of the weights, and seconds."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(task.x.shape[1], 64), nn.ReLU(), nn.Linear(64, task.classes))
    weights = strategy.make(task, model)
    learned = list(weights.parameters())
    order = torch.randperm(len(task.x))
    batches = [(task.x[i], task.given[i], i) for i in order.split(BATCH)]
    started = time.perf_counter()
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        inner_batches=batches,
        outer_batches=[task.clean],
        inner_optimizer=torch.optim.SGD(model.parameters(), LR, momentum=0.9),
        outer_optimizer=torch.optim.Adam(learned, strategy.outer_lr) if learned else None,
        method=strategy.method,
        schedule=Schedule(every=1, steps=len(batches)),
        progress=False,
    )
    trainer.fit(epochs)
    seconds = time.perf_counter() - started
    weights.eval()
    losses = F.cross_entropy(model(task.x), task.given, reduction="none")
    final = weights(torch.arange(len(task.x)), losses).detach().numpy()
    auroc = None
    if not bool(task.right.all()):
        auroc = float(roc_auc_score(task.right.numpy(), final))
    with torch.no_grad():
        predicted = model(task.test[0]).argmax(1).numpy()
    score = 100 * float(balanced_accuracy_score(task.test[1].numpy(), predicted))
    return {"score": score, "auroc": auroc, "seconds": seconds}


def measure(tasks: list[str], strategies: list[str], seeds: int, epochs: int) -> list[dict[str, Any]]:
    """One row per task, strategy and seed."""
    rows = []
    run(TASKS[tasks[0]](0), STRATEGIES["uniform"], 0, 1)  # the first run in a process pays for loading
    bar = tqdm(total=len(tasks) * len(strategies) * seeds, unit="run")
    for name in tasks:
        for seed in range(seeds):
            task, unit = TASKS[name](seed), None
            for strategy in strategies:
                found = run(task, STRATEGIES[strategy], seed, epochs)
                unit = found["seconds"] if unit is None else unit
                ratio = found.pop("seconds") / unit
                rows.append({"task": name, "strategy": strategy, "seed": seed, **found, "seconds_ratio": ratio})
                bar.update()
    bar.close()
    return rows


def markdown(rows: list[dict[str, Any]], note: str) -> str:
    """Mean and deviation per task, ranks over tasks, and paired tests against uniform weights."""
    tasks, strategies = (list(dict.fromkeys(r[key] for r in rows)) for key in ("task", "strategy"))

    def values(task: str, strategy: str, key: str) -> np.ndarray:
        return np.array([r[key] for r in rows if (r["task"], r["strategy"]) == (task, strategy)], dtype=float)

    lines = ["# Strategies of sample weights", "", note, ""]
    for task in tasks:
        lines += [
            f"## {task}",
            "",
            "| strategy | balanced accuracy % | - uniform | p | AUROC | time |",
            "|---" * 6 + "|",
        ]
        base = values(task, strategies[0], "score")
        for strategy in strategies:
            score = values(task, strategy, "score")
            gain = score - base
            p = f"{wilcoxon(gain).pvalue:.3f}" if np.any(gain) and len(gain) > 4 else ""
            area = values(task, strategy, "auroc")
            cells = [
                f"{score.mean():.1f} +- {score.std(ddof=1) if len(score) > 1 else 0:.1f}",
                f"{gain.mean():+.1f}",
                p,
                "" if np.isnan(area).any() else f"{area.mean():.2f}",
                f"{np.median(values(task, strategy, 'seconds_ratio')):.1f}",
            ]
            lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
        lines.append("")
    means = np.array([[values(t, s, "score").mean() for s in strategies] for t in tasks])
    ranks = np.array([rankdata(-row) for row in means]).mean(0)
    lines += ["## Mean rank over tasks", "", "| strategy | rank |", "|---|---|"]
    lines += [f"| {strategies[i]} | {ranks[i]:.1f} |" for i in np.argsort(ranks)]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A picture: gain over uniform weights, by strategy and task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks, strategies = (list(dict.fromkeys(r[key] for r in rows)) for key in ("task", "strategy"))
    score = np.array(
        [
            [np.mean([r["score"] for r in rows if (r["task"], r["strategy"]) == (t, s)]) for s in strategies]
            for t in tasks
        ]
    )
    gain = score - score[:, :1]
    figure, axis = plt.subplots(figsize=(1.2 + 0.75 * len(strategies), 1.5 + 0.5 * len(tasks)), layout="constrained")
    bound = max(float(np.abs(gain).max()), 1.0)
    image = axis.imshow(gain, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    for i, j in np.ndindex(*gain.shape):
        axis.text(j, i, f"{gain[i, j]:+.1f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(strategies)), strategies, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(tasks)), tasks, fontsize=8)
    axis.set_title("Balanced accuracy over uniform weights, points")
    figure.colorbar(image, ax=axis, shrink=0.8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    plt.close(figure)


def main() -> int:
    """Run the benchmark and write rows, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tasks, two seeds")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write reweighting.md, .json and .png here")
    args = parser.parse_args()
    if args.strategies[0] != "uniform":
        parser.error("the first of --strategies must be uniform: the others are compared with it")
    tasks = [t for t in args.tasks if "40 %" in t][:2] if args.quick else args.tasks
    rows = measure(tasks, args.strategies, 2 if args.quick else args.seeds, args.epochs)
    note = (
        f"`python benchmarks/reweighting.py{' --quick' if args.quick else ' --out benchmarks/results'}`: mean and "
        "deviation over seeds, p of a paired Wilcoxon test against uniform weights, AUROC of the final weights for "
        "right against wrong labels, time relative to uniform weights."
    )
    text = markdown(rows, note)
    print(text)
    if args.json:
        write_atomically(args.json, lambda file: file.write(json.dumps(rows, indent=1).encode()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / "reweighting.md", lambda file: file.write(text.encode()))
        write_atomically(args.out / "reweighting.json", lambda file: file.write(json.dumps(rows, indent=1).encode()))
        draw(rows, args.out / "reweighting.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
