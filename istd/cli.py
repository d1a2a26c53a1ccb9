"""The command line: argv is read here and nowhere else."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bilevel import TrainingDiverged
from istd.config import PRESETS, Config
from istd.data.layouts import Dataset, load_folder
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.methods import METHODS
from istd.run import Metrics, prepare_folder, run, summary_table
from istd.students import STUDENTS
from istd.teacher import VFMWeightsError

log = logging.getLogger("istd")


def parser() -> argparse.ArgumentParser:
    """Flags of a training run."""
    p = argparse.ArgumentParser(
        description="Train a small infrared target detector from one point per target. Without --data, a demonstration "
        "on synthetic scenes that are rendered in memory."
    )
    p.add_argument("--data", type=Path, help="dataset folder (images/, points, optional masks, mode/*.txt)")
    p.add_argument("--points", default="auto", help="point labels: auto, centroid, coarse, csv or coco")
    p.add_argument("--preset", choices=list(PRESETS), help="default: cpu with --data, smoke without")
    p.add_argument("--method", choices=list(METHODS), help="default: semantic-priors")
    p.add_argument(
        "--beside", choices=list(METHODS), help="also train this method and print its row; plain without --data"
    )
    p.add_argument("--student", choices=list(STUDENTS), help="student network")
    p.add_argument("--width", type=float, help="factor on the student's channels")
    p.add_argument("--out", type=Path, help="folder for the results; default runs/demo")
    p.add_argument("--vfm", help="timm name of the frozen teacher")
    p.add_argument("--vfm-weights", metavar="FILE", help="local weights for it (timm or original DINOv3 keys)")
    p.add_argument("--vfm-random", action="store_true", help="random weights for it, labelled as such in every table")
    p.add_argument("--seed", type=int, help="seed of weights, crops and clusters; default 0")
    p.add_argument("--epochs", type=int, help="passes over the training images")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    p.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    p.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def config_from(args: argparse.Namespace) -> Config:
    """The frozen config that the flags describe."""
    preset = args.preset or ("cpu" if args.data else "smoke")
    names = ("method", "student", "width", "vfm", "vfm_weights", "seed", "epochs")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.vfm_random:
        given["vfm_random"] = True
    elif args.vfm_weights is not None or args.vfm is not None:
        given["vfm_random"] = False
    return replace(PRESETS[preset], **given)


def resolve_device(name: str) -> torch.device:
    """The device for a flag value.

    Raises:
        ValueError: if CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"`--device {name}`: this machine has no CUDA device; use --device cpu or auto.")
    return torch.device(name)


def train(args: argparse.Namespace) -> Metrics:
    """Load the data, train, and print the table."""
    config = config_from(args)
    device = resolve_device(args.device)
    if args.threads is not None or device.type == "cpu":
        torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    out: Path = args.out or Path("runs/demo")
    prepare_folder(out, args.resume, args.overwrite)
    dataset = _dataset(args)
    handler = logging.FileHandler(out / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        other = args.beside or ("plain" if args.data is None and config.method != "plain" else None)
        beside = [_beside(args, replace(config, method=other), dataset, out / other, device)] if other else []
        metrics = run(config, dataset, out, device, args.resume, not args.quiet)
    finally:
        log.removeHandler(handler)
        handler.close()
    print(summary_table(metrics, beside))
    print(f"{metrics['seconds']:.0f} s; results in {out}/: metrics.json, report.png, student.safetensors")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0, 2 for bad input, 1 for divergence, 130 for Ctrl-C)."""
    args = parser().parse_args(argv)
    try:
        train(args)
    except (ValueError, FileNotFoundError, FileExistsError, VFMWeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingDiverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        out = args.out or Path("runs/demo")
        kept = (out / "checkpoint.pt").exists()
        hint = (
            f"the last finished epoch is in {out}/checkpoint.pt, continue with --resume" if kept else "nothing written"
        )
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 130
    return 0


def _dataset(args: argparse.Namespace) -> Dataset:
    if args.data is not None:
        return load_folder(args.data, args.points)
    return synthetic_dataset(train=64, val=20, test=32, config=SceneConfig(), seed=0)


def _beside(args: argparse.Namespace, config: Config, dataset: Dataset, folder: Path, device: torch.device) -> Metrics:
    """The metrics of the run to compare with, from its finished folder or made now."""
    finished = folder / "metrics.json"
    if finished.is_file() and not args.overwrite:
        found: Metrics = json.loads(finished.read_text())
        if json.loads((folder / "config.json").read_text()) == config.as_dict() and found["dataset"] == dataset.name:
            return found
    prepare_folder(folder, args.resume, args.overwrite)
    return run(config, dataset, folder, device, args.resume, not args.quiet)
