"""`istd train`: one training run, and optionally another method beside it."""

import argparse
from pathlib import Path
from typing import Any

import torch

from istd.commands.common import add_device_flags, resolve_device
from istd.commands.sets import add_data_flags, read_sets
from istd.config import Config
from istd.data.layouts import Dataset
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.flags import add_config_flags, config_from
from istd.folder import check_folder, read_json
from istd.grid import cell_state
from istd.identity import run_identity
from istd.methods import METHODS
from istd.recall import flags_to_keep, recall, resumed_config
from istd.run import Metrics, run, summary_table


def add(subparsers: Any) -> None:
    """Declare the flags of a training run."""
    p = subparsers.add_parser(
        "train",
        help="train a student from points",
        description="Train a small infrared target detector from one point per target. Without --data, a demonstration "
        "on synthetic scenes that are rendered in memory.",
    )
    add_data_flags(p)
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results; default runs/demo")
    p.add_argument("--beside", choices=list(METHODS), help="also train this method and print its row")
    p.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    p.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_device_flags(p)
    add_config_flags(p)
    p.set_defaults(run=train, kept=kept, parser=p)


def train(args: argparse.Namespace) -> None:
    """Load the data, train, and print the table."""
    out: Path = args.out
    check_folder(out, args.resume, args.overwrite)
    if args.resume:
        recall(args)
    config = resumed_config(args) if args.resume else config_from(args)
    device = resolve_device(args)
    dataset = dataset_of(args)
    other = args.beside or ("plain" if args.data is None and config.method != "plain" else None)
    flags = flags_to_keep(args)
    # The run that was asked for comes first: what is wrong with its flags shows at once.
    metrics = run(config, dataset, out, device, args.resume, not args.quiet, overwrite=args.overwrite, flags=flags)
    beside = [_beside(args, config_from(args, other), dataset, out / other, device)] if other else []
    print(summary_table(metrics, beside))
    print(f"{metrics['seconds']:.0f} s; results in {out}/: metrics.json, report.png, student.safetensors")


def kept(args: argparse.Namespace) -> str:
    """What an interrupted run leaves behind."""
    if not (args.out / "checkpoint.pt").exists():
        return "nothing written"
    return f"the last finished epoch is in {args.out}/checkpoint.pt, continue with --resume"


def dataset_of(args: argparse.Namespace) -> Dataset:
    """The folders of `--data`, or the scenes of the demonstration."""
    if args.data is not None:
        return read_sets(args)
    return synthetic_dataset(train=64, val=20, test=32, config=SceneConfig(), seed=0)


def _beside(args: argparse.Namespace, config: Config, dataset: Dataset, folder: Path, device: torch.device) -> Metrics:
    """The metrics of the run to compare with, from its finished folder or made now, or on from where it stopped."""
    state = cell_state(folder, config, run_identity(config, dataset))
    if state == "finished" and not args.overwrite:
        return read_json(folder / "metrics.json")
    if state == "other" and not args.overwrite:
        check_folder(folder, resume=False, overwrite=False)  # refuses: it holds another run
    resume = state == "stopped" and not args.overwrite
    return run(config, dataset, folder, device, resume, not args.quiet, overwrite=args.overwrite)
