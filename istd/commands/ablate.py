"""`istd ablate`: what each part of semantic-priors is worth, over several seeds, in one table."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from istd.commands.common import add_device_flags, resolve_device
from istd.commands.sets import add_data_flags
from istd.commands.train import dataset_of
from istd.config import Config
from istd.flags import add_config_flags, config_from, given_flags, read_config
from istd.grid import run_grid, write_grid

ROWS: dict[str, dict[str, Any]] = {
    "plain": {"method": "plain"},
    "random VFM": {"vfm_random": True, "vfm_weights": None},
    "no VFM, no SCAM": {"method": "no-vfm"},
    "no bilevel": {"method": "no-bilevel"},
    "uniform weights": {"method": "uniform-weights"},
    "no label evolution": {"method": "no-evolution"},
    "published hypergradient": {"variant": "published", "weighted_outer": True},
    "rank-one, derived sign": {"variant": "gauss-newton"},
    "nested clusters": {"cluster_sharing": "nested"},
    "clusters of VFM features": {"descriptors": "vfm"},
    "true validation masks": {"validation_labels": "true"},
    "SCAM: concatenation": {"scam_injection": "concat"},
    "SCAM: mean over tokens": {"scam_pooling": "mean"},
    "SCAM: last depth": {"scam_fusion": "last"},
    "SCAM: last stage": {"scam_stages": "last"},
    "SCAM: no gate penalty": {"scam_gate": 0.0},
}
"""What every row changes in the base configuration."""

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


def add(subparsers: Any) -> None:
    """Declare the flags: those of a training run, and which rows and seeds."""
    p = subparsers.add_parser(
        "ablate",
        help="measure what each part is worth",
        description="Train the base configuration and versions of it that lack or replace one part, with several "
        "seeds, and compare them in pairs. Finished runs in --out are kept, a stopped one goes on where it stood. With "
        f"--preset cpu, unless told otherwise, runs have {THIN} epochs, whatever else counts epochs shrinks alike, "
        "and there are fewer rows.",
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
    add_config_flags(p)
    p.set_defaults(run=ablate, kept=kept)


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
    vfm = "random weights" if base.vfm_random else "pretrained"
    command = ["istd", "ablate", "--data", "DIR", *given_flags(args), "--seeds", *map(str, args.seeds)]
    command += ["--rows", *args.rows] if args.rows else []
    note = (
        f"`{shlex.join(command)}`: {dataset.name}, student {base.student} x{base.width}, preset {base.preset}, "
        f"{base.epochs} epochs, VFM {base.vfm} ({vfm}): mean and deviation over seeds; p of a paired t-test against "
        "the first row; checkpoints chosen on validation, test read once."
    )
    print(write_grid(found, args.out, "ablation", note))


def kept(args: argparse.Namespace) -> str:
    """What an interrupted ablation leaves behind."""
    return f"what has run is in {args.out}, the same command goes on from there"


def thinned(args: argparse.Namespace) -> Config:
    """The base configuration; in `THIN` epochs with the `cpu` preset, where neither flags nor a file say otherwise."""
    base = config_from(args)
    in_file = read_config(args.config) if args.config is not None else {}
    if base.preset != "cpu" or args.epochs is not None or "epochs" in in_file:
        return base
    return config_from(argparse.Namespace(**{**vars(args), "epochs": THIN}))


def rows_of(base: Config, wanted: list[str] | None = None) -> dict[str, Config]:
    """The configurations of some rows, the base first under its method's name.

    `random VFM` is left out where the base has one already.
    """
    names = [name for name in ROWS if wanted is None or name in wanted]
    if base.vfm_random:
        names = [n for n in names if n != "random VFM"]
    return {base.method: base, **{name: replace(base, **ROWS[name]) for name in names}}
