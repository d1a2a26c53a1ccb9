"""Flags that several subcommands share."""

import argparse
import os
from pathlib import Path

import torch

from istd.threads import use_threads


def add_data_flags(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add `--data` and `--points`."""
    parser.add_argument(
        "--data", type=Path, required=required, help="dataset folder (images/, points, optional masks, mode/*.txt)"
    )
    parser.add_argument("--points", default="auto", help="point labels: auto, centroid, coarse, csv or coco")


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--threads` and `--quiet`."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def resolve_device(args: argparse.Namespace) -> torch.device:
    """The device of the flags; on a CPU, the number of threads is set too.

    Raises:
        ValueError: if CUDA was asked for and there is none, or the number of threads is not positive.
    """
    name: str = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"`--device {name}`: this machine has no CUDA device; use --device cpu or auto.")
    device = torch.device(name)
    if args.threads is not None or device.type == "cpu":
        use_threads(len(os.sched_getaffinity(0)) if args.threads is None else args.threads)
    return device
