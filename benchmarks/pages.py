"""What the measurements of training runs share: their flags, their data, and the page they write."""

import argparse
from pathlib import Path

from bilevel.checkpoint import write_atomically
from istd.data.layouts import Dataset, load_folder
from istd.data.scenes import synthetic_dataset
from istd.training.presets import PRESETS


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, `--preset`, `--vfm-random`, `--threads` and `--out`."""
    parser.add_argument("--data", type=Path, help="dataset folder; default: rendered scenes")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--vfm-random", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")


def data_of(args: argparse.Namespace) -> Dataset:
    """The folder of `--data`, or a few scenes."""
    return load_folder(args.data) if args.data else synthetic_dataset(train=24, val=12, test=4)


def write_page(path: Path, title: str, note: str, text: str) -> None:
    """A markdown page: title, how it was made, what was measured."""
    page = f"# {title}\n\n{note}\n\n{text}"
    write_atomically(path, lambda file: file.write(page.encode()))
