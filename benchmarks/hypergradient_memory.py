"""Memory of unrolls where parameters outweigh activations: ten dense layers, eight samples, 100 million numbers.

    python benchmarks/hypergradient_memory.py --out benchmarks/results/hypergradient-memory.md

Each row is one hypergradient in a process of its own: the growth of the resident peak over the call and the seconds of
processor time, on one thread. A parameter holds 4 bytes, so one copy of all is 0.4 GB, and Adam's two moments in
float64 are 1.6 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pages import write_page
from torch import Tensor

from bilevel import BilevelProblem, CheckpointedUnrolled, RecomputedUnrolled, Unrolled, adam, hypergradient, sgd

LAYERS, SAMPLES = 10, 8
METHODS = {
    "full": lambda rule, steps: Unrolled(rule, steps),
    "checkpointed": lambda rule, steps: CheckpointedUnrolled(rule, steps),
    "recomputed": lambda rule, steps: RecomputedUnrolled(rule, steps, "reverse"),
}
RULES: dict[str, Any] = {"sgd": lambda: sgd(0.1), "adam": lambda: adam(1e-4)}
CASES = (("sgd", 8), ("adam", 2))


def measure(numbers: int, rule: str, steps: int, method: str) -> dict[str, float]:
    """Gigabytes by which one call raises this process's peak, and its processor seconds."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    width = round((numbers / LAYERS) ** 0.5)
    inner = [torch.randn(width, width, generator=g).div_(width**0.5) for _ in range(LAYERS)]
    x, outer = torch.randn(SAMPLES, width, generator=g), torch.zeros(SAMPLES)

    def losses(w: Any) -> Tensor:
        z = x
        for layer in w:
            z = torch.tanh(z @ layer)
        return z.square().mean(1)

    problem = BilevelProblem(lambda w, a, _: (a.sigmoid() * losses(w)).mean(), lambda w, a, _: losses(w).mean())
    before, started = _peak(), time.process_time()
    hypergradient(problem, inner, outer, [None], None, METHODS[method](RULES[rule](), steps))
    return {"gigabytes": _peak() - before, "seconds": time.process_time() - started}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    """Measure every case in a fresh process, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=100_000_000, help="inner variables [100000000]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--case", nargs=3, metavar=("RULE", "STEPS", "METHOD"), help="this case alone, as JSON")
    args = parser.parse_args()
    if args.case:
        rule, steps, method = args.case
        print(json.dumps(measure(args.numbers, rule, int(steps), method)))
        return 0
    lines = ["| inner optimizer | T | method | peak, GB | CPU seconds |", "|---" * 5 + "|"]
    for rule, steps in CASES:
        for method in METHODS:
            command = [sys.executable, __file__, "--numbers", str(args.numbers), "--case", rule, str(steps), method]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row = f"| {rule} | {steps} | {method} | {found['gigabytes']:.1f} | {found['seconds']:.0f} |"
            print(row, flush=True)
            lines.append(row)
    if args.out:
        note = f"`python benchmarks/hypergradient_memory.py --out {args.out}`, {args.numbers:,} inner variables."
        write_page(args.out, "Memory of unrolls of a large model", note, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
