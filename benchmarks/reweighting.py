"""Strategies of sample weights, beside each other, on tasks whose wrong labels are known.

    python benchmarks/reweighting.py --data DIR --out benchmarks/results
    python benchmarks/reweighting.py --quick --json rows.json   (two tasks, two seeds)

Every strategy trains the same network for the same number of steps. `score` is the balanced accuracy (for segmentation
the IoU) on the test set in percent, `auroc` how well the final weights separate right from wrong labels (0.5: not at
all), `seconds_ratio` the time of a run over that of uniform weights with the same seed. A strategy is one entry of
`STRATEGIES` in `strategies.py`, or of a file of your own given as --strategy-file.
"""

import argparse
import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noisy_tasks import TASKS, Task, on_images
from scipy.stats import rankdata, wilcoxon
from sklearn.metrics import roc_auc_score
from strategies import STRATEGIES, Strategy
from torch import Tensor
from tqdm import tqdm

from bilevel import BilevelTrainer, Schedule
from bilevel.checkpoint import write_atomically

BATCHES = 8


def run(task: Task, strategy: Strategy, seed: int, epochs: int | None = None) -> dict[str, Any]:
    """Train once; score, AUROC of the weights, and seconds."""
    torch.manual_seed(seed)
    model = task.network()
    weights = strategy.make(task, model)
    learned = list(weights.parameters())
    order = torch.randperm(len(task.x))
    batches = [(task.x[i], task.given[i], i) for i in order.chunk(BATCHES)]

    def inner_loss(model: Any, weights: Any, batch: Any) -> Tensor:
        x, y, index = batch
        losses = task.losses(model(x), y)
        return torch.mean(weights(index, losses) * losses)

    started = time.perf_counter()
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=inner_loss,
        outer_loss=lambda m, w, b: task.losses(m(b[0]), b[1]).mean(),
        inner_batches=batches,
        outer_batches=[task.clean],
        inner_optimizer=torch.optim.SGD(model.parameters(), task.lr, momentum=0.9),
        outer_optimizer=torch.optim.Adam(learned, strategy.outer_lr) if learned else None,
        method=strategy.method(task.lr),
        schedule=Schedule(every=1, steps=len(batches)),
        progress=False,
    )
    trainer.fit(epochs or task.epochs)
    seconds = time.perf_counter() - started
    weights.eval()
    losses = task.losses(model(task.x), task.given)
    final = weights(torch.arange(len(task.x)), losses).detach().numpy()
    auroc = None
    if not bool(task.right.all()):
        auroc = float(roc_auc_score(task.right.numpy(), final))
    score = task.score(model)
    return {"score": score, "auroc": auroc, "seconds": seconds}


def measure(
    tasks: dict[str, Callable[[int], Task]], strategies: list[str], seeds: int, epochs: int | None = None
) -> list[dict[str, Any]]:
    """One row per task, strategy and seed."""
    rows = []
    run(next(iter(tasks.values()))(0), STRATEGIES["uniform"], 0, 1)  # the first run in a process pays for loading
    bar = tqdm(total=len(tasks) * len(strategies) * seeds, unit="run")
    for name, make in tasks.items():
        for seed in range(seeds):
            task, unit = make(seed), None
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
            "| strategy | score % | - uniform | p | AUROC | time |",
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
    lines += claims(rows)
    lines += ["## Mean rank over tasks", "", "| strategy | rank |", "|---|---|"]
    lines += [f"| {strategies[i]} | {ranks[i]:.1f} |" for i in np.argsort(ranks)]
    return "\n".join(lines) + "\n"


CLAIMS = (
    ("score", "per cluster", "per sample", "of clusters"),
    ("score", "per cluster", "meta-weight-net", "of clusters"),
    ("score", "per cluster", "L2RW", "of clusters"),
    ("auroc", "per cluster", "per cluster, rank-one", "symmetric"),
    ("auroc", "per cluster", "per cluster, rank-one as published", "symmetric"),
    ("auroc", "per cluster", "per cluster, rank-one", "of clusters"),
    ("auroc", "per cluster", "per cluster, rank-one as published", "of clusters"),
    ("score", "per sample", "uniform", "digits, 40 % symmetric"),
    ("score", "per class", "uniform", "digits, 40 % symmetric"),
    ("score", "per cluster", "uniform", "digits, 40 % symmetric"),
    ("score", "meta-weight-net", "uniform", "digits, 40 % symmetric"),
    ("score", "feature network", "uniform", "digits, 40 % symmetric"),
    ("score", "L2RW", "uniform", "digits, 40 % symmetric"),
)


def claims(rows: list[dict[str, Any]]) -> list[str]:
    """Paired comparisons of two strategies over all seeds of the tasks whose name holds a text."""
    lines = [
        "## Who beats whom",
        "",
        "| measure | strategy | against | tasks | difference | p | runs won |",
        "|---" * 7 + "|",
    ]
    for key, one, other, where in CLAIMS:
        chosen = {(r["task"], r["seed"], r["strategy"]): r[key] for r in rows if where in r["task"]}
        runs = sorted({(t, s) for t, s, name in chosen if name == one and (t, s, other) in chosen})
        if not runs:
            continue
        gain = np.array([chosen[*r, one] - chosen[*r, other] for r in runs])
        p = f"{wilcoxon(gain).pvalue:.1e}" if np.any(gain) and len(gain) > 4 else ""
        cells = [key, one, other, where, f"{gain.mean():+.2f}", p, f"{int((gain > 0).sum())} of {len(gain)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""] if len(lines) > 4 else []


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
    axis.set_title("Score over that of uniform weights, points")
    figure.colorbar(image, ax=axis, shrink=0.8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    plt.close(figure)


def main() -> int:
    """Run the benchmark and write rows, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tasks, two seeds")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="these tasks; default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="images with true masks: one more task")
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="these strategies, uniform first; default: all")
    parser.add_argument("--strategy-file", type=Path, metavar="FILE", help="a Python file that adds to STRATEGIES")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="default: the task's, 40 or 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write reweighting.md, .json and .png here")
    args = parser.parse_args()
    if args.strategy_file:
        runpy.run_path(str(args.strategy_file))
    strategies = args.strategies or list(STRATEGIES)
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown:
        parser.error(f"--strategies: unknown {unknown[0]!r}; known: {', '.join(STRATEGIES)}")
    if strategies[0] != "uniform":
        parser.error("the first of --strategies must be uniform: the others are compared with it")
    names = (
        args.tasks or [t for t in TASKS if not args.quick or t.startswith("digits, 40 %")][: 2 if args.quick else None]
    )
    tasks = {name: TASKS[name] for name in names} | (on_images(args.data) if args.data else {})
    rows = measure(tasks, strategies, 2 if args.quick else args.seeds, args.epochs)
    flags = "--quick" if args.quick else "--data DIR --out benchmarks/results"
    note = (
        f"`python benchmarks/reweighting.py {flags}`: mean and deviation over seeds, p of a paired Wilcoxon test "
        "against uniform weights, AUROC of the final weights for right against wrong labels, time relative to uniform "
        "weights."
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
