"""Step time and memory of every student, beside those of the released modules.

    python benchmarks/students.py --out benchmarks/results/students.md
    python benchmarks/students.py --formats --out benchmarks/results/memory-formats.md

One thread, float32, on a CPU: inference on 1 x C x 256 x 256 (`inference_form`, as `istd detect` runs it), and a
training step on 4 x C x 128 x 128 (forward with all supervised maps, cross-entropy, backward), each in the memory
format that `istd.students.in_fast_format` chooses; `--formats` measures its two candidates turn by turn. Times are in
units of a yardstick, eight 3x3 convolutions of 16 channels with ReLUs on the same input, timed in the same round, and
are medians over rounds. Memory is the most that is allocated during a step, beyond what was before it.

The released modules are not in this repository. `results/students-released.json` holds their times in the same unit and
their memory: `measured` of this file, called on the released classes in one process and turn by turn with ours.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pages import write_page
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from istd.students import STUDENTS, create_student, inference_form, memory_format

RELEASED = Path(__file__).parent / "results" / "students-released.json"
MODES = {"eval": (1, 256), "train": (4, 128)}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
WHAT = """one thread; processor times in units of a chain of eight 3x3 convolutions timed in the same rounds; memory
allocated at the most during a step; "beside" is the ratio of times when both networks were timed turn by turn in one
process, which `students-released.json` holds with the released modules' times and memory"""
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


def student_step(
    name: str, mode: str, layout: torch.memory_format | None = None, width: float = 1.0, batch: int | None = None
) -> Step:
    """A step of a student, as the pipeline runs it, or in another memory format."""
    images, side = MODES[mode]
    student: Any = create_student(name, width)
    layout = memory_format(student, training=mode == "train") if layout is None else layout
    network = (inference_form(student) if mode == "eval" else student).to(memory_format=layout)
    x = torch.randn(batch or images, student.in_channels, side, side).to(memory_format=layout)
    return step(network, lambda x: student.decode_all(student.encode(x)), x, mode)


def measured(steps: dict[str, Step], mode: str, rounds: int) -> Figures:
    """Of each step its time in yardsticks, the median over rounds in which all take turns, and its memory in MiB."""
    rod = yardstick(mode)
    for warm_up in (rod, *steps.values()):
        warm_up()
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        unit = processor_seconds(rod)
        for name, call in steps.items():
            ratios[name].append(processor_seconds(call) / unit)
    return {n: {"time": statistics.median(ratios[n]), "memory": peak_memory(call)} for n, call in steps.items()}


def processor_seconds(call: Step) -> float:
    """Processor time of one run: on one thread the time it takes, less that in which other processes had the core."""
    started = time.process_time()
    call()
    return time.process_time() - started


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
    lines = [
        "| student | mode | time | of released | beside | MiB | of released |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for mode in MODES:
            torch.manual_seed(0)
            ours = measured({name: student_step(name, mode)}, mode, rounds)[name]
            theirs = released.get(name, {}).get(mode)
            shares, beside = ["", ""], ""
            if theirs is not None:
                shares, beside = [f"{ours[k] / theirs[k]:.2f}" for k in ("time", "memory")], f"{theirs['beside']:.2f}"
            cells = [name, mode, f"{ours['time']:.2f}", shares[0], beside, f"{ours['memory']:.0f}", shares[1]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def formats(names: Sequence[str], rounds: int) -> str:
    """A table: of each student and mode the time in channels-last order as a share of that in contiguous order."""
    cases = [(name, 1.0, mode, None) for name in names for mode in MODES]
    cases += [(name, 0.5, "train", 8) for name in names if name in ("alcl", "mlcl")]
    lines = ["| student | width | mode | images | channels-last / contiguous | chosen |", "|---|---|---|---|---|---|"]
    for name, width, mode, batch in cases:
        torch.manual_seed(0)
        steps = {key: student_step(name, mode, layout, width, batch) for key, layout in FORMATS.items()}
        times = measured(steps, mode, rounds)
        share = times["channels-last"]["time"] / times["contiguous"]["time"]
        chosen = memory_format(create_student(name, 0.25), training=mode == "train")
        label = next(key for key, layout in FORMATS.items() if layout == chosen)
        lines.append(f"| {name} | {width:g} | {mode} | {batch or MODES[mode][0]} | {share:.2f} | {label} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", action="store_true", help="compare the memory formats instead")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.formats:
        text, title = formats(args.students, args.rounds), "Memory formats of students"
        what = (
            "one thread, float32, steps of both formats turn by turn, medians; images of 128 x 128 pixels in training"
        )
    else:
        released = json.loads(RELEASED.read_text()) if RELEASED.is_file() else {"networks": {}}
        text, title = report(args.students, args.rounds, released["networks"]), "Students beside the released modules"
        what = WHAT
    print(text)
    if args.out:
        command = ["--formats"] * args.formats + ["--rounds", str(args.rounds)]
        if args.students != list(STUDENTS):
            command += ["--students", *args.students]
        note = f"`python benchmarks/students.py {' '.join(command)} --out {args.out}`: {what}."
        write_page(args.out, title, note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
