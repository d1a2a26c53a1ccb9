"""`istd ablate`: what each part of semantic-priors is worth, over several seeds, in one table."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import torch

from istd.cli.common import add_device_flags, resolve_device
from istd.cli.flags import add_settings_flags, read_values, settings_from
from istd.cli.sets import add_data_flags, dataset_of
from istd.runs.grid import run_grid
from istd.runs.table import write_grid
from istd.settings import Settings
from istd.training.presets import alike

ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "random VFM": (None, {"vfm.random": True, "vfm.weights": None}),
    "no VFM, no SCAM": ("no-vfm", {}),
    "no bilevel": ("no-bilevel", {}),
    "uniform weights": ("uniform-weights", {}),
    "no label evolution": ("no-evolution", {}),
    "published hypergradient": (
        None,
        {"outer.hypergradient": "rank-one-published", "teaching.weighted_outer": True},
    ),
    "rank-one, derived sign": (None, {"outer.hypergradient": "rank-one"}),
    "nested clusters": (None, {"clusters.sharing": "nested"}),
    "clusters of VFM features": (None, {"clusters.descriptors": "vfm"}),
    "true validation masks": (None, {"labels.validation": "true"}),
    "SCAM: concatenation": (None, {"scam.injection": "concat"}),
    "SCAM: mean over tokens": (None, {"scam.pooling": "mean"}),
    "SCAM: last depth": (None, {"scam.fusion": "last"}),
    "SCAM: last stage": (None, {"scam.stages": "last"}),
    "SCAM: no gate penalty": (None, {"scam.gate_weight": 0.0}),
}
"""Every row's method, None for that of the base, and what it changes."""

QUESTIONS = [
    "plain",
    "random VFM",
    "no VFM, no SCAM",
    "no bilevel",
    "uniform weights",
    "no label evolution",
    "published hypergradient",
    "true validation masks",
]
"""The rows that every reader asks for; the others vary a part instead of taking it out."""

THIN = 20
"""Epochs of an ablation's runs with the `cpu` preset unless told otherwise: they are many."""


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags: those of a training run, and which rows and seeds."""
    p.description = (
        "Train the base configuration and versions of it that lack or replace one part, with several "
        "seeds, and compare them in pairs. Finished runs in --out are kept, a stopped one goes on where it stood. With "
        f"--preset cpu, unless told otherwise, runs have {THIN} epochs, whatever else counts epochs shrinks alike, "
        "and there are fewer rows."
    )
    add_data_flags(p)
    p.add_argument("--out", type=Path, default=Path("runs/ablation"), help="default runs/ablation")
    p.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        metavar="ROW",
        help=f"of: {', '.join(ROWS)}; default: all; with --preset cpu: {', '.join(QUESTIONS)}",
    )
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    p.add_argument("--jobs", type=int, help="runs at a time; default: one a core on a CPU, up to 8, else 1")
    add_device_flags(p)
    add_settings_flags(p)
    p.set_defaults(run=ablate, kept=kept, takes_settings=True)


def ablate(args: argparse.Namespace) -> None:
    """Run the grid and write table, numbers and picture.

    Raises:
        ValueError: if a seed stands twice, or the test split has no true masks.
    """
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"`--seeds` must differ, got {args.seeds}.")
    base, device, dataset = thinned(args), resolve_device(args), dataset_of(args)
    if not dataset.has_truth:
        raise ValueError("An ablation needs true masks for the test split: there is nothing to compare without them.")
    jobs = args.jobs or (min(torch.get_num_threads(), 8) if device.type == "cpu" else 1)
    rows = rows_of(base, args.rows or (QUESTIONS if base.preset == "cpu" else None))
    found = run_grid(rows, args.seeds, dataset, args.out, device, not args.quiet, jobs=jobs)
    values = base.flat()
    vfm = "random weights" if values["vfm.random"] else "pretrained"
    command = ["istd", "ablate", "--data", "DIR", *_given(args), "--seeds", *map(str, args.seeds)]
    command += ["--rows", *args.rows] if args.rows else []
    note = (
        f"`{shlex.join(command)}`: {dataset.name}, student {base.student} x{base.width}, preset {base.preset}, "
        f"{base.schedule.epochs} epochs, VFM {values['vfm.name']} ({vfm}): mean and deviation over "
        "seeds; p of a paired t-test against the first row; checkpoints chosen on validation, test read once."
    )
    print(write_grid(found, args.out, "ablation", note))


def kept(args: argparse.Namespace) -> str:
    """What an interrupted ablation leaves behind."""
    return f"what has run is in {args.out}, the same command goes on from there"


def thinned(args: argparse.Namespace) -> Settings:
    """The base settings; in `THIN` epochs with the `cpu` preset, where neither flags nor a file say otherwise.

    Raises:
        ValueError: for a method without a VFM: the rows vary parts of semantic-priors.
    """
    base = settings_from(args, args.settings)
    if "scam.gate_weight" not in base.flat():
        raise ValueError(f"`--method` must be semantic-priors or a part of it, got {base.method!r}: the rows vary it.")
    in_file = read_values(args.config, args.method) if args.config is not None else {}
    said = "schedule.epochs" in in_file or any(w.partition("=")[0] == "--epochs" for w in args.settings)
    if base.preset != "cpu" or said:
        return base
    return settings_from(args, ["--epochs", str(THIN), *args.settings])


def rows_of(base: Settings, wanted: list[str] | None = None) -> dict[str, Settings]:
    """The settings of some rows, the base first under its method's name.

    `random VFM` is left out where the base has one already.
    """
    names = [name for name in ROWS if wanted is None or name in wanted]
    if base.flat()["vfm.random"]:
        names = [n for n in names if n != "random VFM"]
    found = {base.method: base}
    for name in names:
        method, changes = ROWS[name]
        found[name] = base.changed(**changes) if method is None else alike(base, method)
    return found


def _given(args: argparse.Namespace) -> list[str]:
    """The settings' part of the command line, to be shown with its result."""
    named = [(f"--{name}", getattr(args, name)) for name in ("preset", "method", "config")]
    return [word for flag, value in named if value is not None for word in (flag, str(value))] + list(args.settings)
