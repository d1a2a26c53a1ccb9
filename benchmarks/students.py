"""Step time and memory of every student, beside those of the released modules.

    python benchmarks/students.py --out benchmarks/results/students.md

One thread, float32, on a CPU: inference on 1 x C x 256 x 256 (`inference_form`, channels-last, as `istd detect` runs
it), and a training step on 4 x C x 128 x 128 (forward with all supervised maps, cross-entropy, backward). Times are in
units of a yardstick, eight 3x3 convolutions of 16 channels with ReLUs on the same input, timed in the same round, and
are medians over rounds. Memory is the most that is allocated during a step, beyond what was before it.

The released modules are not in this repository. `results/students-released.json` holds their times in the same unit and
their memory: `measured` of this file, called on the released classes in one process and turn by turn with ours.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pages import write_page
from timing import timed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from istd.students import STUDENTS, create_student, inference_form

RELEASED = Path(__file__).parent / "results" / "students-released.json"
MODES = {"eval": (1, 256), "train": (4, 128)}
Step = Callable[[], object]
Figures = dict[str, dict[str, float]]


def step(network: nn.Module, maps: Callable[[Tensor], Sequence[Tensor]], x: Tensor, mode: str) -> Step:
    """Inference by `network(x)`, or cross-entropies of all `maps(x)` against an empty mask, and backward."""
    network.train(mode == "train")

    def infer() -> object:
        with torch.no_grad():
            return network(x)

    def train() -> None:
        losses = [F.binary_cross_entropy_with_logits(z, torch.zeros_like(z)) for z in maps(x)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        network.zero_grad()

    return train if mode == "train" else infer


def yardstick(mode: str) -> Step:
    """A step of eight 3x3 convolutions of 16 channels with ReLUs."""
    batch, side = MODES[mode]
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(*layers)
    return step(network, lambda x: [network(x)], torch.randn(batch, 16, side, side), mode)


def student_step(name: str, mode: str) -> Step:
    """A step of a student, as the pipeline runs it."""
    batch, side = MODES[mode]
    student: Any = create_student(name)
    network = (inference_form(student) if mode == "eval" else student).to(memory_format=torch.channels_last)
    x = torch.randn(batch, student.in_channels, side, side).to(memory_format=torch.channels_last)
    return step(network, lambda x: student.decode_all(student.encode(x)), x, mode)


def measured(steps: dict[str, Step], mode: str, rounds: int) -> Figures:
    """Of each step its time in yardsticks, the median over rounds in which all take turns, and its memory in MiB."""
    rod = yardstick(mode)
    for warm_up in (rod, *steps.values()):
        warm_up()
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        unit = timed(rod)
        for name, call in steps.items():
            ratios[name].append(timed(call) / unit)
    return {n: {"time": statistics.median(ratios[n]), "memory": peak_memory(call)} for n, call in steps.items()}


def peak_memory(call: Step) -> float:
    """MiB that are allocated at the most during a call, beyond what was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    level = peak = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


def report(names: Sequence[str], rounds: int, released: dict[str, dict[str, dict[str, float]]]) -> str:
    """A table: of each student and mode time and memory, and their ratios to the released module's."""
    lines = ["| student | mode | time | of released | MiB | of released |", "|---|---|---|---|---|---|"]
    for name in names:
        for mode in MODES:
            torch.manual_seed(0)
            ours = measured({name: student_step(name, mode)}, mode, rounds)[name]
            theirs = released.get(name, {}).get(mode)
            shares = ["", ""] if theirs is None else [f"{ours[k] / theirs[k]:.2f}" for k in ("time", "memory")]
            cells = [name, mode, f"{ours['time']:.2f}", shares[0], f"{ours['memory']:.0f}", shares[1]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    released = json.loads(RELEASED.read_text()) if RELEASED.is_file() else {"networks": {}}
    text = report(args.students, args.rounds, released["networks"])
    print(text)
    if args.out:
        note = (
            f"`python benchmarks/students.py --rounds {args.rounds} --students {' '.join(args.students)} --out "
            f"{args.out}`: one thread; times in units of a "
            "chain of eight 3x3 convolutions timed in the same rounds; memory allocated at the most during a step. "
            "Released modules: `students-released.json`."
        )
        write_page(args.out, "Students beside the released modules", note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
