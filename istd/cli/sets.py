"""Flags that say which data a command reads and how, and what it prints of them."""

import argparse
from pathlib import Path

from istd.data.dataset import Dataset
from istd.data.doubts import black_hot
from istd.data.formats import POINTS
from istd.data.layouts import load_folders
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.data.sensor import SensorRange


def add_folder_flag(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add `--data`."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=required,
        metavar="DIR",
        help="dataset folder, or several that are read as one set (docs/layouts.md: what one may hold)",
    )


def add_data_flags(parser: argparse.ArgumentParser, required: bool = False, split: bool = True) -> None:
    """Add `--data`, `--points`, `--split`, `--range` and `--black-hot`."""
    add_folder_flag(parser, required)
    parser.add_argument(
        "--points",
        choices=POINTS[:-1],
        default="auto",
        metavar="FORM",
        help=f"point labels: {', '.join(POINTS[:-1])}; centroid and coarse are derived from masks if need be [auto]",
    )
    if split:
        parser.add_argument(
            "--split", metavar="NAME", help="which family of split lists, where there are several (idx_320)"
        )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="raw values that become 0 and 1 in every frame [8-bit: 0 255; deeper: robust percentiles of each frame]",
    )
    parser.add_argument("--black-hot", action="store_true", help="hot is dark: invert every frame")


def sensor_of(args: argparse.Namespace) -> SensorRange:
    """The sensor's range of the flags.

    Raises:
        ValueError: if it does not rise.
    """
    low, high = args.range or (None, None)
    return SensorRange(low, high, polarity="black-hot" if args.black_hot else "white-hot")


def read_sets(args: argparse.Namespace) -> Dataset:
    """The folders of `--data` as one dataset, with a line on each of what was read.

    Raises:
        FileNotFoundError, ValueError: see `istd.data.layouts.load_folder`.
    """
    dataset = load_folders(args.data, args.points, split=args.split, sensor=sensor_of(args))
    announce(dataset)
    return dataset


def dataset_of(args: argparse.Namespace) -> Dataset:
    """The folders of `--data`, or the scenes of the demonstration."""
    if args.data is not None:
        return read_sets(args)
    return synthetic_dataset(train=64, val=20, test=32, config=SceneConfig(), seed=0)


def announce(dataset: Dataset) -> None:
    """Print where each set came from, and whether its images look inverted."""
    for origin in dataset.origins:
        print(origin)
    doubt = black_hot(dataset.samples)
    if doubt is not None and dataset.sensor.polarity == "white-hot":
        print(f"DOUBT: {doubt}")
