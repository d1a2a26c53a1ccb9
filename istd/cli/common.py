"""Flags that several subcommands share."""

import argparse
import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bilevel.checkpoint import write_atomically
from istd.inference.export import load_student
from istd.inference.predict import StudentPredictor
from istd.threads import use_threads


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--threads` and `--quiet`."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    """Add the student and `--threshold`, for a command that predicts masks."""
    parser.add_argument("student", type=Path, help="student.safetensors, or the folder of a run")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability above which a pixel is a target [0.5]"
    )


def load_student_of(args: argparse.Namespace) -> StudentPredictor:
    """The student of the flags, on their device.

    Raises:
        ValueError: for a threshold outside (0, 1), or a file that is no student.
        FileNotFoundError: if there is no student.
    """
    if not 0 < args.threshold < 1:
        raise ValueError(f"`--threshold` must lie in (0, 1), got {args.threshold}.")
    return load_student(args.student, resolve_device(args))


def add_mask_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--out` and `--overwrite`, for a command that writes a mask per image."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that are there")


def refuse_overwriting(args: argparse.Namespace, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Protect pictures that are in `--out` already: another run's masks, and the inputs, even with `--overwrite`.

    Args:
        args: with `out` and `overwrite`.
        names: of the masks that will be written.
        inputs: folders that are read.

    Raises:
        ValueError: if a mask would be written into a folder of inputs.
        FileExistsError: if there is a picture and `--overwrite` was not given.
    """
    targets, read = [args.out / f"{name}.png" for name in names], {folder.resolve() for folder in inputs}
    mixed = next((path for path in targets if path.parent.resolve() in read), None)
    if mixed is not None:
        raise ValueError(f"`--out` is {str(args.out)!r}: {mixed} would lie among the inputs; choose another folder.")
    there = next((path for path in targets if path.exists()), None)
    if there is not None and not args.overwrite:
        raise FileExistsError(f"{there} is there already; choose another --out, or replace it with --overwrite.")


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask atomically, as a PNG with 0 and 255."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    write_atomically(path, partial(picture.save, format="PNG"))


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; names that hold commas or quotes are quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


def masks_kept(args: argparse.Namespace) -> str:
    """What an interrupted command that writes a mask per image leaves behind."""
    return f"the masks written so far are in {args.out}"


class SkippedInputs(RuntimeError):
    """A command has done all that it could, but some inputs could not be read; the message names them."""


def resolve_device(args: argparse.Namespace) -> torch.device:
    """The device of the flags; on a CPU, the number of threads is set too.

    Raises:
        ValueError: for an unknown device, one that this machine lacks, or a number of threads that is not positive.
    """
    name: str = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", name):
        raise ValueError(f"`--device` must be auto, cpu, cuda or cuda:N, got {name!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`--device {name}`: this machine has no CUDA device; use --device cpu or auto.")
    if number and int(number) >= (count := torch.cuda.device_count()):
        raise ValueError(f"`--device {name}`: this machine has {count} CUDA devices, from cuda:0 on.")
    device = torch.device(name)
    if args.threads is not None or device.type == "cpu":
        use_threads(len(os.sched_getaffinity(0)) if args.threads is None else args.threads)
    return device
