"""One table from the `metrics.json` of several runs: a row per configuration, mean and deviation over seeds.

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
from istd.files import write_json
from istd.runs.grid import slug
from istd.runs.table import SCALES, mean_std, p_value


def name_of(run: dict[str, Any]) -> str:
    """Method, VFM and what the run changed in its preset."""
    vfm = ""
    if run["vfm"]:
        vfm = f" ({run['vfm']})" if run["vfm_pretrained"] else f" (random {run['vfm'].split('.')[0]})"
    return run["method"] + vfm + "".join(f", {k}={v}" for k, v in run.get("changes", {}).items())


def rows(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Metric blocks of all seeds, by what they describe."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in runs:
        name = name_of(run)
        found[f"student {run['student_name']} x{run['width']}: {name}"].append(run["student"])
        if run["teacher"]:
            found[f"teacher: {name}"].append(run["teacher"])
        for stage in ("initial", "final"):
            if run["method"] != "full":
                found[f"{stage} pseudo-masks, train+val: {name}"].append(run["pseudo_masks"][stage])
    return {name: blocks for name, blocks in found.items() if all(blocks)}


def notes(runs: list[dict[str, Any]]) -> list[str]:
    """Training time of every run, and what its weights say."""
    lines = []
    for run in runs:
        line = f"- {name_of(run)}, seed {run['seed']}: {run['seconds']:.0f} s on {run['threads']} thread(s)"
        learned = run.get("learned_weights")
        if learned is not None:  # runs of earlier versions did not say
            line += f"; weights of images {learned['smallest']:.2f} to {learned['largest']:.2f}"
            if learned["mask_quality"] is not None:
                line += f", rank correlation with the IoU of their masks {learned['mask_quality']:.2f}"
        lines.append(line)
    return lines


def gains(runs: list[dict[str, Any]]) -> list[str]:
    """Every configuration's student against `plain`, in pairs of the same seed: mean gain, p of a paired t-test."""
    by_name: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for run in runs:
        if run["student"]:
            by_name[name_of(run)][run["seed"]] = run["student"]
    plain, lines = by_name.pop("plain", {}), []
    for name, found in by_name.items():
        seeds = sorted(found.keys() & plain.keys())
        if len(seeds) < 2:
            continue
        cells = []
        for key in ("IoU", "nIoU"):
            gain = SCALES[key] * np.array([found[s][key] - plain[s][key] for s in seeds])
            cells.append(f"{key} {gain.mean():+.1f}" + (f" (p = {p})" if (p := p_value(gain)) else ""))
        lines.append(f"- {name}, against plain in {len(seeds)} pairs of seeds: {', '.join(cells)}")
    return lines


def markdown(runs: list[dict[str, Any]]) -> str:
    """The table: mean +- standard deviation over seeds (n = 1: the value)."""
    runs = sorted(runs, key=lambda r: (r["method"], len(r.get("changes", {})), name_of(r), r["seed"]))
    first = runs[0]
    lines = [
        f"{first['dataset']}, {first['split']}, {first['n_targets']} test targets; chosen on {first['selected_on']}, "
        f"test read once; preset {first['preset']}.",
        "",
        "| row | seeds | IoU % | nIoU % | Pd % | Fa 1e-6 |",
        "|---|---|---|---|---|---|",
    ]
    for name, blocks in rows(runs).items():
        cells = [mean_std(scale * np.array([b[key] for b in blocks])) for key, scale in SCALES.items()]
        lines.append(f"| {name} | {len(blocks)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *gains(runs), *notes(runs)]) + "\n"


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
            name = slug(f"{name_of(run)} {run['student_name']}")
            write_json(args.out / f"{name}-seed{run['seed']}.json", run)
        write_atomically(args.out / "table.md", lambda file: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
