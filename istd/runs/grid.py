"""Many runs as one table: rows of configurations, several seeds each, resumable cell by cell."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bilevel import TrainingDiverged
from istd.data.dataset import Dataset
from istd.runs.folder import RunFolder
from istd.runs.identity import run_identity
from istd.runs.metrics import Metrics
from istd.runs.run import run
from istd.runs.table import SCALES
from istd.runs.workers import WorkerDied, run_jobs
from istd.settings import Settings

Rows = Mapping[str, Settings]


def run_grid(
    rows: Rows,
    seeds: Sequence[int],
    dataset: Dataset,
    out: Path,
    device: torch.device | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    jobs: int = 1,
) -> dict[str, list[Metrics]]:
    """Train every row with every seed, or take what an earlier call has finished.

    Args:
        rows: settings for every row; their seed is replaced.
        seeds: seeds, the same for all rows, so that rows can be compared in pairs.
        dataset: the data of all runs.
        out: folder; the run of a row and seed lies in `out/ROW/seedN`, a stopped one goes on where it stood.
        device: where to train.
        progress: show progress bars.
        report: called with a line per cell.
        jobs: cells at a time, each in a process of its own with an equal share of this process's threads. On a CPU,
            as many cells as cores with one thread each are done sooner than one after the other with all.

    Returns:
        By row, the metrics of every seed in order.

    Raises:
        ValueError: if `jobs` is not positive.
        TrainingDiverged: if cells diverged; the message names them, and all others have been trained and are kept.
        WorkerDied: if processes of cells were killed; likewise.
    """
    if jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, got {jobs}.")
    # Seed by seed: a stopped grid is a smaller complete one.
    cells = {(name, seed): settings.changed(seed=seed) for seed in seeds for name, settings in rows.items()}
    folders = {(name, seed): out / slug(name) / f"seed{seed}" for name, seed in cells}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"Two `rows` have one folder name; rename one of {', '.join(rows)}.")
    at_once = min(jobs, len(cells))
    threads = torch.get_num_threads() if at_once < 2 else max(torch.get_num_threads() // jobs, 1)
    states = {}
    for cell, settings in cells.items():
        states[cell] = RunFolder(folders[cell]).state(settings, run_identity(settings, dataset, threads))
        if states[cell] == "other":
            report(f"{cell[0]}, seed {cell[1]}: made anew, {folders[cell]} holds another run")
    open_cells = [cell for cell, state in states.items() if state != "finished"]
    failed: list[str] = []
    kinds: list[type[Exception]] = []

    def take(cell: tuple[str, int], result: Callable[[], Metrics]) -> None:
        name = f"{cell[0]}, seed {cell[1]}"
        try:
            metrics = result()
        except (TrainingDiverged, WorkerDied) as error:  # hours of other cells do not wait for this one
            failed.append(f"{name}: {error}")
            kinds.append(type(error))
            report(failed[-1])
        else:
            report(f"{name}: {_summary(metrics['student'])} ({metrics['seconds']:.0f} s)")

    def arguments(cell: tuple[str, int], progress: bool) -> tuple[Any, ...]:
        return cells[cell], dataset, folders[cell], device, states[cell], progress

    if at_once < 2:
        for cell in open_cells:
            take(cell, partial(_train, *arguments(cell, progress)))
    else:
        made = run_jobs({cell: arguments(cell, False) for cell in open_cells}, _train, at_once, threads)
        with closing(made):
            for cell, result in tqdm(made, "runs", len(open_cells), unit="run", disable=not progress):
                take(cell, result)
    if failed:
        died = WorkerDied in kinds
        raise (WorkerDied if died else TrainingDiverged)(
            f"{len(failed)} of {len(cells)} runs {'have no result' if died else 'diverged'}; the others are kept in "
            f"{out}.\n" + "\n".join(failed)
        )
    return {name: [RunFolder(folders[name, seed]).read_metrics() for seed in seeds] for name in rows}


def _train(settings: Settings, dataset: Dataset, folder: Path, device: Any, state: str, progress: bool) -> Metrics:
    """One cell, from its start or from where it stopped."""
    return run(settings, dataset, folder, device, state == "stopped", progress, overwrite=state == "other")


def slug(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _summary(block: Mapping[str, float] | None) -> str:
    if block is None:
        return "no true masks to score against"
    return " ".join(f"{key} {scale * block[key]:.1f}" for key, scale in SCALES.items())
