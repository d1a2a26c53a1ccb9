"""`istd ablate`: what each part of semantic-priors is worth, over several seeds, in one table."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from istd.commands.common import add_data_flags, add_device_flags, resolve_device
from istd.commands.train import dataset_of
from istd.config import Config
from istd.flags import add_config_flags, config_from
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


def add(subparsers: Any) -> None:
    """Declare the flags: those of a training run, and which rows and seeds."""
    p = subparsers.add_parser(
        "ablate",
        help="measure what each part is worth",
        description="Train the base configuration and versions of it that lack or replace one part, with several "
        "seeds, and compare them in pairs. Finished runs in --out are kept, a stopped one goes on where it stood.",
    )
    add_data_flags(p)
    p.add_argument("--out", type=Path, default=Path("runs/ablation"), help="default runs/ablation")
    p.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of: {', '.join(ROWS)}; default: all")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add_device_flags(p)
    add_config_flags(p)
    p.set_defaults(run=ablate)


def ablate(args: argparse.Namespace) -> None:
    """Run the grid and write table, numbers and picture.

    Raises:
        ValueError: if a seed stands twice, or the test split has no true masks.
    """
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"`--seeds` must differ, got {args.seeds}.")
    base, device, dataset = config_from(args), resolve_device(args), dataset_of(args)
    if not dataset.has_truth:
        raise ValueError("An ablation needs true masks for the test split: there is nothing to compare without them.")
    found = run_grid(rows_of(base, args.rows), args.seeds, dataset, args.out, device, not args.quiet)
    vfm = "random weights" if base.vfm_random else "pretrained"
    note = (
        f"{dataset.name}, student {base.student} x{base.width}, preset {base.preset}, {base.epochs} epochs, VFM "
        f"{base.vfm} ({vfm}): mean and deviation over seeds {', '.join(map(str, args.seeds))}; p of a paired t-test "
        "against the first row; checkpoints chosen on validation, test read once."
    )
    print(write_grid(found, args.out, "ablation", note))


def rows_of(base: Config, wanted: list[str] | None = None) -> dict[str, Config]:
    """The configurations of some rows, the base first under its method's name.

    `random VFM` is left out where the base has one already.
    """
    names = [name for name in ROWS if wanted is None or name in wanted]
    if base.vfm_random:
        names = [n for n in names if n != "random VFM"]
    return {base.method: base, **{name: replace(base, **ROWS[name]) for name in names}}
