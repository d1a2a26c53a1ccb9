"""`istd train`: one training run, and optionally another method beside it."""

import argparse
from pathlib import Path

import torch

from istd.cli.common import add_device_flags, resolve_device
from istd.cli.flags import add_settings_flags, settings_from
from istd.cli.recall import flags_to_keep, recall, resumed_settings
from istd.cli.sets import add_data_flags, dataset_of
from istd.data.dataset import Dataset
from istd.methods import METHODS
from istd.runs import Metrics, RunFolder, run
from istd.runs.holding import check_folder
from istd.runs.identity import run_identity
from istd.runs.summary import summary_table
from istd.settings import Settings
from istd.training.presets import alike


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags of a training run."""
    p.description = (
        "Train a small infrared target detector from one point per target. Without --data, a demonstration on "
        "synthetic scenes that are rendered in memory. Settings follow below; they depend on --method and --preset."
    )
    add_data_flags(p)
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results; default runs/demo")
    p.add_argument("--beside", choices=list(METHODS), help="also train this method and print its row")
    p.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    p.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_device_flags(p)
    add_settings_flags(p)
    p.set_defaults(run=train, kept=kept, parser=p, takes_settings=True)


def train(args: argparse.Namespace) -> None:
    """Load the data, train, and print the table."""
    out: Path = args.out
    check_folder(out, args.resume, args.overwrite)
    if args.resume:
        recall(args)
    settings = resumed_settings(args) if args.resume else settings_from(args, args.settings)
    device = resolve_device(args)
    dataset = dataset_of(args)
    other = args.beside or ("plain" if args.data is None and settings.method != "plain" else None)
    flags = flags_to_keep(args)
    # The run that was asked for comes first: what is wrong with its flags shows at once.
    metrics = run(settings, dataset, out, device, args.resume, not args.quiet, overwrite=args.overwrite, flags=flags)
    beside = [_beside(args, alike(settings, other), dataset, out / other, device)] if other else []
    print(summary_table(metrics, beside))
    print(f"{metrics['seconds']:.0f} s; results in {out}/: metrics.json, report.png, student.safetensors")


def kept(args: argparse.Namespace) -> str:
    """What an interrupted run leaves behind."""
    if not (args.out / "checkpoint.pt").exists():
        return "nothing written"
    return f"the last finished epoch is in {args.out}/checkpoint.pt, continue with --resume"


def _beside(args: argparse.Namespace, settings: Settings, dataset: Dataset, out: Path, device: torch.device) -> Metrics:
    """The metrics of the run to compare with, from its finished folder or made now, or on from where it stopped."""
    folder = RunFolder(out)
    state = folder.state(settings, run_identity(settings, dataset))
    if state == "finished" and not args.overwrite:
        return folder.read_metrics()
    if state == "other" and not args.overwrite:
        check_folder(out, resume=False, overwrite=False)  # refuses: it holds another run
    resume = state == "stopped" and not args.overwrite
    return run(settings, dataset, out, device, resume, not args.quiet, overwrite=args.overwrite)
