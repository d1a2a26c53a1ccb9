"""Time, memory and error of every hypergradient method, beside the peers that are installed.

    python benchmarks/hypergradients.py --out benchmarks/results
    python benchmarks/hypergradients.py --quick --json rows.json   (four problems, few repeats)

Each problem runs in a process of its own. `ratio` is wall time over that of T plain `torch.optim` steps, both the
fastest of interleaved repeats in one process. `floor` is the ratio of what the algorithm cannot avoid: its gradients
and second-order products, each timed in the same process. `error` is relative to a closed form or to the float64
unroll, median (and worst) over the starts of a problem that has several. `rss_mb` is the growth of peak memory over
one call, each in a fresh process that has loaded all code by a call with T=5. Peers (extra `peers`): higher and
torchopt where they offer the algorithm; `by hand` is the shortest loop over torch.autograd.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from hyper_cleaning import digits
from hypergradient_problems import PROBLEMS, QUICK
from timing import Case, timed

from bilevel.checkpoint import write_atomically

TIE = 1.15
"""Times that differ by less are equal: a repeated run moves them as far."""


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of one problem, in this process."""
    case = PROBLEMS[name]()
    calls: dict[Any, Any] = {None: case.plain, **case.calls}
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for key, call in calls.items():
            times[key].append(timed(call))
    unit = min(times[None])
    errors = _errors([case, *(start() for start in case.starts)])
    floors = {method: measured() / unit for method, measured in case.floors.items()}
    rows = []
    for library, method in case.calls:
        error = sorted(errors.get((library, method), []))
        seconds_each = times[library, method]
        rows.append(
            {
                "problem": name,
                "method": method,
                "library": library,
                "ratio": min(seconds_each) / unit,
                "median": sorted(seconds_each)[repeats // 2] / sorted(times[None])[repeats // 2],
                "milliseconds": 1e3 * min(seconds_each),
                "error": error[len(error) // 2] if error else None,
                "worst": error[-1] if len(error) > 1 else None,
                "floor": floors.get(method),
                "rss_mb": None,
            }
        )
    return rows


def _errors(cases: list[Case]) -> dict[tuple[str, str], list[float]]:
    """Relative errors of every method over the starts of a problem."""
    errors: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        if case.truth is None:
            continue
        truth = case.truth().double()
        for key, call in case.calls.items():
            if key[1] in case.exact:
                error = float((call().double() - truth).norm() / truth.norm())
                errors.setdefault(key, []).append(math.inf if error != error else error)
    return errors


def memory(name: str, library: str, method: str) -> float:
    """Growth of the resident peak over one call, in MB, in this (fresh) process, once all code is loaded."""
    _, rule, steps = name.split(", ")
    digits(rule, 5).calls[library, method]()  # first use loads some 20 MB of code (5: both kinds of product are tried)
    case = digits(rule, int(steps.removeprefix("T=")))
    case.plain()
    before = _peak()
    case.calls[library, method]()
    return _peak() - before


def _peak() -> float:
    text = Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith("VmHWM"))
    return float(line.split()[1]) / 1024


def _child(*flags: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        subprocess.run([sys.executable, __file__, *flags, "--json", str(out)], check=True)
        return json.loads(out.read_text())


def markdown(rows: list[dict[str, Any]], note: str) -> str:
    """One table a problem."""
    lines = ["# Hypergradient methods, measured", "", note, ""]
    for problem in dict.fromkeys(r["problem"] for r in rows):
        lines += [
            f"## {problem}",
            "",
            "| method | library | ratio (median) | floor | ms | relative error (worst) | RSS MB |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for r in rows:
            if r["problem"] == problem:
                cells = [f"{r['ratio']:.2f} ({r['median']:.2f})", _cell(r["floor"], ".2f"), f"{r['milliseconds']:.1f}"]
                worst = "" if r["worst"] is None else f" ({_cell(r['worst'], '.1e')})"
                cells += [_cell(r["error"], ".1e") + worst, _cell(r["rss_mb"], ".0f")]
                lines.append(f"| {r['method']} | {r['library']} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {line}" for line in peers_ahead([r for r in rows if r["problem"] == problem])), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def peers_ahead(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every method of one problem that a peer computes faster, by both the fastest and the median time."""
    lines = []
    ours = {r["method"]: r for r in rows if r["library"] == "bilevel"}
    for r in rows:
        own = ours.get(r["method"])
        if r["library"] != "bilevel" and own and all(own[k] > TIE * r[k] for k in ("ratio", "median")):
            lines.append(f"{r['library']} is ahead in {r['method']}: {r['ratio']:.2f} against {own['ratio']:.2f}.")
    return lines


def compare(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> str:
    """How far ratios moved against rows measured earlier, in a sentence."""
    before = {(r["problem"], r["library"], r["method"]): r["ratio"] for r in earlier}
    keys = [(r["problem"], r["library"], r["method"]) for r in rows]
    moves = {k: r["ratio"] / before[k] - 1 for k, r in zip(keys, rows, strict=True) if k in before}
    if not moves:
        return ""
    size = sorted(abs(m) for m in moves.values())
    furthest = max(moves, key=lambda k: abs(moves[k]))
    return (
        f" Against an earlier run {len(moves)} ratios moved by {size[len(size) // 2]:.0%} (median), nine of ten by at "
        f"most {size[int(0.9 * (len(size) - 1))]:.0%}, the furthest ({' | '.join(furthest)}) by {moves[furthest]:+.0%}."
    )


def _cell(value: float | None, how: str) -> str:
    return "" if value is None else "NaN" if math.isinf(value) else format(value, how)


def main() -> int:
    """Run all problems, each in its own process, and write rows and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four problems, few repeats, no memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write hypergradients.md and hypergradients.json here")
    parser.add_argument("--against", type=Path, metavar="FILE", help="say how far ratios moved since these rows")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), help="these problems; default: all")
    parser.add_argument("--problem", choices=list(PROBLEMS), help="this problem alone, in this process")
    parser.add_argument("--memory-of", nargs=2, metavar=("LIBRARY", "METHOD"), help="with --problem: peak memory alone")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.problem:
        rows: Any
        if args.memory_of:
            rows = memory(args.problem, *args.memory_of)
        else:
            rows = measure(args.problem, args.repeats)
        if args.json:
            args.json.write_text(json.dumps(rows))
        return 0
    earlier = json.loads(args.against.read_text()) if args.against else []
    rows = []
    repeats = str(min(args.repeats, 3) if args.quick else args.repeats)
    for name in args.problems or (QUICK if args.quick else PROBLEMS):
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = _child("--problem", name, "--repeats", repeats, "--threads", str(args.threads))
        if not args.quick and name.startswith("digits"):
            for row in found:
                flags = ("--problem", name, "--memory-of", row["library"], row["method"])
                row["rss_mb"] = _child(*flags, "--threads", str(args.threads))
        rows += found
    note = (
        f"`python benchmarks/hypergradients.py {shlex.join(sys.argv[1:])}`, torch "
        f"{torch.__version__.split('+')[0]}, {args.threads} CPU threads. Ratio: time over that of T plain torch.optim "
        "steps in the same process, fastest (median) of interleaved repeats; differences under 15 % are ties."
    ) + compare(rows, earlier)
    text = markdown(rows, note)
    print(text)
    for path, content in (
        (args.json, json.dumps(rows, indent=1)),
        *(
            ((args.out / "hypergradients.md", text), (args.out / "hypergradients.json", json.dumps(rows, indent=1)))
            if args.out
            else ()
        ),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, c=content: file.write(c.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
