"""One table from the `metrics.json` of several runs: a row per method, mean and deviation over seeds.

    python benchmarks/table.py runs/*/metrics.json --out benchmarks/results/sirst-v1

With `--out`, the table goes to `table.md` there, and a copy of every metrics file beside it.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.checkpoint import write_atomically
from istd.run import write_json

SCALES = {"IoU": 100.0, "nIoU": 100.0, "Pd": 100.0, "Fa": 1e6}


def rows(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Metric blocks of all seeds, by what they describe."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: (r["method"], r["seed"])):
        name = f"{run['method']}, {run['student_name']} x{run['width']}"
        if run["student"]:
            found[f"student: {name}"].append(run["student"])
        if run["teacher"]:
            trained = "pretrained" if run["vfm_pretrained"] else "random weights"
            found[f"teacher: {name} ({run['vfm']}, {trained})"].append(run["teacher"])
        for stage in ("initial", "final"):
            block = run["pseudo_masks"][stage]
            if block and run["method"] != "full":
                found[f"{stage} pseudo-masks, train+val: {run['method']}"].append(block)
    return found


def markdown(runs: list[dict[str, Any]]) -> str:
    """The table: mean +- standard deviation over seeds (n = 1: the value)."""
    first = runs[0]
    seconds = defaultdict(list)
    for run in runs:
        seconds[run["method"]].append(f"seed {run['seed']}: {run['seconds']:.0f} s on {run['threads']} thread(s)")
    lines = [
        f"{first['dataset']}, {first['split']}, {first['n_targets']} test targets; chosen on {first['selected_on']}, "
        f"test read once; preset {first['preset']}.",
        "",
        "| row | seeds | IoU % | nIoU % | Pd % | Fa 1e-6 |",
        "|---|---|---|---|---|---|",
    ]
    for name, blocks in rows(runs).items():
        cells = []
        for key, scale in SCALES.items():
            values = scale * np.array([b[key] for b in blocks])
            spread = f" +- {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        lines.append(f"| {name} | {len(blocks)} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {method}: {'; '.join(times)}" for method, times in sorted(seconds.items()))]
    return "\n".join(lines) + "\n"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="+", type=Path, help="metrics.json files")
    p.add_argument("--out", type=Path, help="folder for table.md and copies of the files")
    args = p.parse_args()
    runs = [json.loads(path.read_text()) for path in args.files]
    if len({run["dataset"] for run in runs}) > 1:
        print("error: the runs are on different datasets; give those of one", file=sys.stderr)
        return 2
    text = markdown(runs)
    print(text)
    if args.out is not None:
        for run in runs:
            write_json(args.out / f"{run['method']}-{run['student_name']}-seed{run['seed']}.json", run)
        write_atomically(args.out / "table.md", lambda file: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
