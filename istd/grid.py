"""Many runs as one table: rows of configurations, several seeds each, resumable cell by cell."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bilevel import TrainingDiverged
from bilevel.checkpoint import write_atomically
from istd.config import Config
from istd.data.layouts import Dataset
from istd.figures import new_figure, save_figure
from istd.flags import read_config
from istd.folder import ASIDE, holds_run, read_json, write_json
from istd.identity import first_difference, is_sealed, run_identity
from istd.run import Metrics, run
from istd.workers import WorkerDied, run_jobs

SCALES = {"IoU": 100.0, "nIoU": 100.0, "Pd": 100.0, "Fa": 1e6}
Rows = Mapping[str, Config]


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
        rows: a configuration for every row; its seed is replaced.
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
    cells = {(name, seed): replace(config, seed=seed) for seed in seeds for name, config in rows.items()}
    folders = {(name, seed): out / slug(name) / f"seed{seed}" for name, seed in cells}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"Two `rows` have one folder name; rename one of {', '.join(rows)}.")
    at_once = min(jobs, len(cells))
    threads = torch.get_num_threads() if at_once < 2 else max(torch.get_num_threads() // jobs, 1)
    states = {}
    for cell, config in cells.items():
        states[cell] = cell_state(folders[cell], config, run_identity(config, dataset, threads))
        if states[cell] == "other":
            report(f"{cell[0]}, seed {cell[1]}: made anew, {folders[cell]} holds another run")
    open_cells = [cell for cell, state in states.items() if state != "finished"]
    failed: list[str] = []
    kinds: list[type[Exception]] = []

    def told(cell: tuple[str, int], result: Callable[[], Metrics]) -> None:
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
            told(cell, partial(_train, *arguments(cell, progress)))
    else:
        made = run_jobs({cell: arguments(cell, False) for cell in open_cells}, _train, at_once, threads)
        with closing(made):
            for cell, result in tqdm(made, "runs", len(open_cells), unit="run", disable=not progress):
                told(cell, result)
    if failed:
        died = WorkerDied in kinds
        raise (WorkerDied if died else TrainingDiverged)(
            f"{len(failed)} of {len(cells)} runs {'have no result' if died else 'diverged'}; the others are kept in "
            f"{out}.\n" + "\n".join(failed)
        )
    return {name: [read_json(folders[name, seed] / "metrics.json") for seed in seeds] for name in rows}


def _train(config: Config, dataset: Dataset, folder: Path, device: Any, state: str, progress: bool) -> Metrics:
    """One cell, from its start or from where it stopped."""
    return run(config, dataset, folder, device, state == "stopped", progress, overwrite=state == "other")


def slug(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cell_state(folder: Path, config: Config, identity: Mapping[str, Any]) -> str:
    """`empty`, `finished`, `stopped` (to be resumed), or `other`: another run, or none that can be made out.

    A run is known by its configuration and by its data's content. Results of another number of threads are results; a
    stopped run is only resumed with its own. A torn or edited `metrics.json` is made again from its checkpoint.
    """
    if not holds_run(folder):
        return "other" if folder.exists() and holds_run(folder / ASIDE) else "empty"
    try:
        if read_config(folder / "config.json") != config.as_dict():
            return "other"
        found = read_json(folder / "run.json").get("identity")
        if not isinstance(found, dict):
            return "other"
    except (OSError, ValueError):
        return "other"
    if first_difference({**found, "threads": None}, {**identity, "threads": None}) is not None:
        return "other"
    if _whole(folder / "metrics.json"):
        return "finished"
    return "stopped" if (folder / "checkpoint.pt").is_file() and found == identity else "other"


def _whole(path: Path) -> bool:
    try:
        return is_sealed(read_json(path))
    except (OSError, ValueError):
        return False


def _summary(block: Mapping[str, float] | None) -> str:
    if block is None:
        return "no true masks to score against"
    return " ".join(f"{key} {scale * block[key]:.1f}" for key, scale in SCALES.items())


def markdown(found: Mapping[str, Sequence[Metrics]], note: str) -> str:
    """Mean and deviation over seeds; difference of IoU to the first row with a paired t-test; stability (`istd.run`).

    `IoU moves`: change of validation IoU, in points, between evaluations in the second half of a run. `labels move`:
    share of pseudo-mask foreground, in percent, that an update turns over.
    """
    reference, *_ = found
    lines = [note, "", "| row | seeds | IoU % | nIoU % | Pd % | Fa 1e-6 | - first, IoU | p | IoU moves | labels move |"]
    lines.append("|---" * 10 + "|")
    base = _values(found[reference], "IoU")
    for name, runs in found.items():
        cells = [spread(_values(runs, key)) for key in SCALES]
        gain = _values(runs, "IoU") - base
        p = chance(gain)
        moves = [100 * float(np.mean([r["stability"][key] for r in runs])) for key in ("late_change", "label_change")]
        cells += ["" if name == reference else f"{gain.mean():+.1f}", p, *(f"{m:.1f}" for m in moves)]
        name += " (told mask areas)" if any(r.get("leaks_mask_area") for r in runs) else ""
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Sequence[Metrics]], path: Path) -> None:
    """Every seed as a dot and the mean as a bar, IoU and nIoU."""
    figure = new_figure(9, 1.4 + 0.32 * len(found))
    axes: Any = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, ("IoU", "nIoU"), strict=True):
        for y, runs in enumerate(found.values()):
            values = _values(runs, key)
            axis.plot(values, np.full(len(values), y), "o", color="tab:blue", alpha=0.6, ms=4)
            axis.plot([values.mean()], [y], "|", color="black", ms=14)
        axis.axvline(_values(next(iter(found.values())), key).mean(), color="0.7", lw=0.8, zorder=0)
        axis.set_xlabel(f"student {key}, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(found)), list(found), fontsize=8)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def write_grid(found: Mapping[str, Sequence[Metrics]], out: Path, name: str, note: str, after: str = "") -> str:
    """Write `NAME.md` (note, table, what comes after), `NAME.json` and `NAME.png` into `out`; return the page."""
    text = markdown(found, note) + after
    write_atomically(out / f"{name}.md", lambda file: file.write(text.encode()))
    write_json(out / f"{name}.json", {row: list(runs) for row, runs in found.items()})
    draw(found, out / f"{name}.png")
    return text


def _values(runs: Sequence[Metrics], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return SCALES[key] * np.array([r["student"][key] for r in runs], dtype=np.float64)


def spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Mean and, of more than one value, standard deviation, as tables show them."""
    return f"{values.mean():.1f}" + (f" +- {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def chance(gain: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Probability p of a paired t-test, from the differences of the pairs; empty where there is none."""
    from scipy.stats import ttest_1samp

    return f"{ttest_1samp(gain, 0).pvalue:.2f}" if len(gain) > 1 and np.ptp(gain) > 0 else ""
