"""Whether choosing a checkpoint pays: the chosen weights of finished runs beside their last ones.

    python benchmarks/last_weights.py runs/x runs/y --data DIR --out FILE

A run keeps the weights that agree best with the start masks of the validation images, among the evaluations from
`select_from` on; with `--select-from 1` it takes the last ones, and trains the same. Here both kinds of weights of a
run are scored against the true masks of the validation split, which a choice could be based on in hindsight, and of the
test split, which none is.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pages import write_page
from tqdm import tqdm

from istd.data.layouts import Dataset, load_folder
from istd.metrics import evaluate_masks
from istd.runs import load_run
from istd.runs.table import SCALES, mean_std, p_value
from istd.threads import use_threads
from istd.training.experiment import Experiment

NOTE = (
    "`python benchmarks/last_weights.py RUNS --data DIR`; a run trains the same either way, and with `--select-from 1` "
    "it keeps its last weights. Scores are against true masks."
)
Scores = dict[str, dict[str, float]]
"""Metric blocks by split."""


class Row(NamedTuple):
    """One run: its method, seed and chosen epoch, and the scores of both kinds of weights."""

    method: str
    seed: int
    epoch: int
    chosen: Scores
    last: Scores


def measure(folder: Path, dataset: Dataset) -> Row:
    """Score one finished run."""
    experiment = load_run(folder, dataset)
    last = scores(experiment)
    experiment.load_best()
    epoch = int(experiment.best.best["epoch"])
    return Row(experiment.settings.method, experiment.settings.seed, epoch, scores(experiment), last)


def scores(experiment: Experiment) -> Scores:
    """Of the averaged student as it is, on the validation and test split."""
    found = {}
    for split, samples in (("val", experiment.dataset.val), ("test", experiment.dataset.test)):
        pairs: list[Any] = [(experiment.predict_student(s.image) > 0.5, s.truth()) for s in samples]
        found[split] = evaluate_masks(pairs)
    return found


def markdown(rows: list[Row]) -> str:
    """Every run, then by method the mean of the last weights and the gain over the chosen ones."""
    lines = ["| run | chosen epoch | val IoU %, chosen | last | test IoU/nIoU/Pd/Fa, chosen | last |", "|---" * 6 + "|"]
    by_method = defaultdict(list)
    for row in rows:
        by_method[row.method].append(row)
        val = [f"{100 * s['val']['IoU']:.1f}" for s in (row.chosen, row.last)]
        test = [_block(s["test"]) for s in (row.chosen, row.last)]
        lines.append(f"| {row.method}, seed {row.seed} | {row.epoch} | {' | '.join([*val, *test])} |")
    lines += ["", "| last weights | seeds | test IoU % | nIoU % | Pd % | Fa 1e-6 | IoU, last - chosen | p |"]
    lines.append("|---" * 8 + "|")
    for method, runs in by_method.items():
        means = [mean_std(scale * np.array([r.last["test"][key] for r in runs])) for key, scale in SCALES.items()]
        gain = 100 * np.array([r.last["test"]["IoU"] - r.chosen["test"]["IoU"] for r in runs])
        lines.append(f"| {method} | {len(runs)} | {' | '.join(means)} | {gain.mean():+.1f} | {p_value(gain)} |")
    return "\n".join(lines) + "\n"


def _block(scored: dict[str, float]) -> str:
    return "/".join(f"{SCALES[key] * value:.1f}" for key, value in scored.items())


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", type=Path, help="folders of finished runs on the same data")
    p.add_argument("--data", type=Path, required=True, help="their dataset folder, with true masks")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    args = p.parse_args()
    use_threads(args.threads)
    dataset = load_folder(args.data)
    text = markdown([measure(run, dataset) for run in tqdm(args.runs, "runs", unit="run")])
    print(text)
    if args.out is not None:
        write_page(args.out, "Chosen and last weights", NOTE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
