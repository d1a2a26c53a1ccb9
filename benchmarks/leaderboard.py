"""All methods under one harness: one split, one budget, several seeds, resumable cell by cell.

    python benchmarks/leaderboard.py --data DIR --preset cpu --vfm-random --out runs/leaderboard

Every method starts from the same preset and changes what its source fixes (`Method.fixed`). Beside our numbers stand
published ones where the split is the same, with what else differs. `leaderboard.md`, `.json` and `.png` go to --out.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from istd.data.layouts import load_folder
from istd.methods import METHODS
from istd.runs.grid import run_grid
from istd.runs.table import write_grid
from istd.settings import Settings
from istd.students import STUDENTS
from istd.threads import use_threads
from istd.training.presets import PRESETS, applicable, configure

COMPARED = ("plain", "semantic-priors", "diffuse-to-detect", "fdep", "pal", "lesps", "mclc", "full")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffuse-to-detect, points judge": ("diffuse-to-detect", {"outer.labels": "points"}),
    "diffuse-to-detect, published": ("diffuse-to-detect", {"outer.hypergradient": "output-alignment"}),
    "diffuse-to-detect, leaks": ("diffuse-to-detect", {"labels.leaks_mask_area": True}),
}
"""Rows beside the methods: a method and what the row changes in it."""

PUBLISHED = """
Published figures on SIRST-v1's standard test split (214 images), trained at full width on SIRST3 or SIRST-v1 for 300 to
400 epochs on a GPU. None is comparable cell by cell: the sources choose the checkpoint on the test split.

| row | IoU % | what differs |
|---|---|---|
| PAL, GGL-Net, centroid points | 72.5 | trained on SIRST3 (1676 images) |
| PAL, ALCL-Net (a rerun) | 60.5 | trained on SIRST-v1 |
| LESPS, ALCL-Net (a rerun) | 39.9 | trained on SIRST-v1 |
| MCLC, ALCL-Net (a rerun) | 71.8 | its masks read the true mask's area |
| full supervision, ALCL-Net (a rerun) | 72.6 | trained on SIRST-v1 |

Sources: PAL (2025); Diffuse to Detect (2026), table 2, for the reruns.
"""


def rows(
    preset: str, methods: list[str], students: list[str], epochs: int | None, changes: dict[str, Any]
) -> dict[str, Settings]:
    """Settings for every method (or variant) and student; other `epochs` shorten all schedules alike."""
    several, found = len(students) > 1, {}
    for student in students:
        for row in methods:
            method, variant = VARIANTS.get(row, (row, {}))
            given = {"student": student, **applicable(method, changes), **variant}
            if epochs is not None:
                given["schedule.epochs"] = epochs
            found[f"{row}, {student}" if several else row] = configure(preset, method, given)
    return found


def main() -> int:
    """Run, or go on with, the grid and write its table."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--preset", choices=list(PRESETS), default="cpu")
    p.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS, *VARIANTS],
        default=list(COMPARED),
        metavar="ROW",
        help=f"of: {', '.join([*METHODS, *VARIANTS])}; default: {' '.join(COMPARED)}",
    )
    p.add_argument("--students", nargs="+", choices=list(STUDENTS), default=["alcl"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--epochs", type=int, help="of every method; default: the preset's; all schedules shrink alike")
    p.add_argument("--vfm-random", action="store_true")
    p.add_argument("--out", type=Path, default=Path("runs/leaderboard"))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the threads")
    args = p.parse_args()
    use_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cells = rows(args.preset, args.methods, args.students, args.epochs, {"vfm.random": args.vfm_random})
    dataset = load_folder(args.data)
    found = run_grid(cells, args.seeds, dataset, args.out, device, jobs=args.jobs)
    epochs = next(iter(cells.values())).schedule.epochs
    flags = ["--data DIR", f"--preset {args.preset}", f"--epochs {epochs}", *(["--vfm-random"] * args.vfm_random)]
    flags += [f"--students {shlex.join(args.students)}", f"--methods {shlex.join(args.methods)}"]
    note = (
        f"`python benchmarks/leaderboard.py {' '.join(flags)} --seeds {shlex.join(map(str, args.seeds))}`: "
        f"{dataset.name}, preset {args.preset}, {epochs} epochs each, seeds {', '.join(map(str, args.seeds))}; one "
        "split, checkpoint chosen on validation pseudo-masks (true masks for `full`), test read once; VFM with "
        f"{'random' if args.vfm_random else 'pretrained'} weights."
    )
    print(write_grid(found, args.out, "leaderboard", note, PUBLISHED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
