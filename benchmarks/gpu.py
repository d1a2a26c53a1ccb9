"""Use a CUDA machine well for a few minutes: a resumable queue of cells, most wanted first.

    python benchmarks/gpu.py --minutes 9 --out benchmarks/results/gpu --data ../shared/data/sirst-v1

A cell is one training run or one throughput measurement. A finished cell is never started again; one that the time ran
out on goes on from its checkpoint at the next call. Training cells keep their work in `--work` (checkpoints, pictures);
`--out` gets one JSON per finished cell and `table.md`, each with the card's name and the date.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bilevel.checkpoint import write_atomically
from istd.data.layouts import Dataset, load_folder
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.files import write_json
from istd.runs import RunFolder, run
from istd.runs.report import format_table
from istd.students import STUDENTS, create_student
from istd.training.presets import PRESETS, applicable, configure


class OutOfTime(Exception):
    """The deadline passed inside a cell; its checkpoint holds every finished epoch."""


@dataclass(frozen=True)
class Deadline:
    """A hook that ends training at a point in time."""

    at: float

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Raise once the time is up."""
        if time.monotonic() > self.at:
            raise OutOfTime


def throughput(student: str, device: torch.device, batch: int = 16, side: int = 256) -> dict[str, Any]:
    """Images per second of a student: inference and training, float32 and bfloat16 autocast."""
    result: dict[str, Any] = {"student": student, "batch": batch, "side": side}
    network = create_student(student).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def infer() -> None:
        with torch.no_grad():
            network(x)

    def train() -> None:
        network(x).square().mean().backward()

    for precision, enabled in (("float32", False), ("bfloat16", True)):
        for name, step in (("inference", infer), ("training", train)):
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                result[f"{name}_{precision}_images_per_s"] = round(batch / _seconds(step, device), 1)
    return result


def _seconds(step: Callable[[], None], device: torch.device, repeats: int = 10) -> float:
    for _ in range(3):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cells(preset: str) -> list[tuple[str, dict[str, Any]]]:
    """The queue, most wanted first: throughput, then training rows seed by seed."""
    queue: list[tuple[str, dict[str, Any]]] = [
        (f"throughput-{name}", {"kind": "throughput", "student": name}) for name in STUDENTS
    ]
    for seed in range(3):
        for student in STUDENTS:
            for method in ("semantic-priors", "plain", "full"):
                cell = {"kind": "train", "method": method, "student": student, "seed": seed}
                queue.append((f"{preset}-{method}-{student}-seed{seed}", cell))
    return queue


def train_cell(
    cell: dict[str, Any], preset: str, dataset: Dataset, folder: Path, device: torch.device, deadline: float
) -> dict[str, Any]:
    """Train one row, continuing from its checkpoint."""
    method = cell["method"]
    changes = applicable(method, {"vfm.random": True, "student": cell["student"], "seed": cell["seed"]})
    settings = configure(preset, method, changes)
    folder.mkdir(parents=True, exist_ok=True)
    resume = RunFolder(folder).holds_run()
    return dict(run(settings, dataset, folder, device, resume, progress=False, callbacks=[Deadline(deadline)]))


def write_table(out: Path) -> str:
    """Collect all finished cells of `out` into `table.md` and return its text."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    rows = {f"{c['name']} ({c['card']}, {c['date']})": c["student"] for c in found if c["kind"] == "train"}
    lines = ["# GPU results", "", "Command: `python benchmarks/gpu.py --minutes 9 --out benchmarks/results/gpu`.", ""]
    if any(rows.values()):
        lines += ["```", format_table(rows, "training rows, test split"), "```", ""]
    lines += ["| throughput | images/s |", "|---|---|"]
    for c in found:
        if c["kind"] == "throughput":
            lines += [f"| {c['student']}, {k} ({c['card']}, {c['date']}) | {v} |" for k, v in c.items() if "per_s" in k]
    text = "\n".join(lines) + "\n"
    write_atomically(out / "table.md", lambda file: file.write(text.encode()))
    return text


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=9.0, help="stop after this many minutes")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder for results")
    p.add_argument("--work", type=Path, default=Path("runs/gpu"), help="folder for checkpoints and pictures")
    p.add_argument("--data", type=Path, help="dataset folder; without it, synthetic scenes")
    p.add_argument("--preset", default="paper", choices=list(PRESETS))
    p.add_argument("--device", default="cuda")
    args = p.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "error: this machine has no CUDA device; --device cpu --preset smoke tries the queue out", file=sys.stderr
        )
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if args.data is not None:
        dataset = load_folder(args.data)
    else:
        dataset = synthetic_dataset(config=SceneConfig(size=128 if args.preset == "smoke" else 256))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, cell in cells(args.preset):
        done = args.out / f"{name}.json"
        if done.exists():
            continue
        if time.monotonic() > deadline:
            break
        try:
            if cell["kind"] == "throughput":
                result = throughput(cell["student"], device)
            else:
                result = train_cell(cell, args.preset, dataset, args.work / name, device, deadline)
        except OutOfTime:
            break
        date = datetime.date.today().isoformat()
        write_json(done, result | {"name": name, "kind": cell["kind"], "card": card, "date": date})
        print(f"finished {name}", flush=True)
    print(write_table(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
