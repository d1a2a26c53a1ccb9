"""`istd data`: what was understood of a folder of images, and a picture of some, before anything is trained."""

import argparse
from functools import partial
from pathlib import Path

from bilevel.checkpoint import write_atomically
from istd.cli.sets import sensor_of
from istd.data.dataset import Sample
from istd.data.formats import POINTS
from istd.data.overview import describe
from istd.data.sheet import contact_sheet


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Read a folder as `istd train` would, and say in ten lines what was understood: images, sizes, "
        "depth, masks, points, splits, doubts. Nothing in the folder is changed."
    )
    p.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="dataset folders")
    p.add_argument("--points", choices=POINTS, default="auto", metavar="FORM", help=f"of {', '.join(POINTS)} [auto]")
    p.add_argument("--split", metavar="NAME", help="which family of split lists, where there are several")
    p.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as in `istd train`")
    p.add_argument("--black-hot", action="store_true", help="as in `istd train`")
    p.add_argument("--sheet", type=Path, metavar="FILE", help="draw some images with points and masks here (PNG)")
    p.set_defaults(run=data)


def data(args: argparse.Namespace) -> None:
    """Describe every folder, and draw the contact sheet.

    Raises:
        FileNotFoundError, ValueError: if a folder cannot be read as a dataset; the message names file and remedy.
    """
    samples: list[Sample] = []
    for folder in args.folders:
        lines, dataset = describe(folder, args.points, args.split, sensor_of(args))
        print("\n".join(lines))
        samples += dataset.samples
    if args.sheet:
        write_atomically(args.sheet, partial(contact_sheet(samples).save, format="PNG"))
        print(f"sheet:  {args.sheet}")
