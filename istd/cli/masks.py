"""`istd masks`: pseudo-masks from points, for a folder of images; no training."""

import argparse

from tqdm import tqdm

from istd.cli.common import add_mask_flags, masks_kept, refuse_overwriting, write_mask, write_table
from istd.cli.sets import add_data_flags, announce, sensor_of
from istd.data.folder import open_folder
from istd.data.layouts import load_split
from istd.labels import INITIAL_MASKS
from istd.metrics import evaluate_masks
from istd.runs.report import draw_masks, format_table


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Draw a mask around every point label of a folder: NAME.png with 0 and 255 for every image, a list "
        "of the points that need a look, and a picture of some."
    )
    add_data_flags(p, required=True, split=False)
    add_mask_flags(p)
    p.add_argument("--rule", choices=list(INITIAL_MASKS), default="half-maximum", help="default: half-maximum")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=masks, kept=masks_kept)


def masks(args: argparse.Namespace) -> None:
    """Draw, write, and say which points the rule could not trust.

    Raises:
        ValueError: for several folders, or an `--out` that images, masks or points lie in.
        FileExistsError: if a picture would be overwritten and `--overwrite` was not given.
    """
    if len(args.data) > 1:
        raise ValueError("`istd masks` draws into one folder, so `--data` must be one; run it once for each.")
    dataset, rule = load_split(args.data[0], "all", args.points, sensor=sensor_of(args)), INITIAL_MASKS[args.rule]
    announce(dataset)
    samples = dataset.test
    refuse_overwriting(args, [s.name for s in samples], open_folder(args.data[0]).folders)
    doubtful, drawn = [], []
    for sample in tqdm(samples, "masks", unit="image", disable=args.quiet):
        found = rule(sample)
        drawn.append(found.mask)
        write_mask(args.out / f"{sample.name}.png", found.mask)
        doubtful += [(sample.name, col, row) for row, col in sample.points[~found.reliable].tolist()]
    write_table(args.out / "doubtful.csv", ("image", "x", "y"), doubtful)
    draw_masks(args.out / "overview.jpg", samples, drawn)
    points = sum(len(s.points) for s in samples)
    print(
        f"{len(samples)} masks of {points} points in {args.out}/ by the rule {args.rule!r}; {len(doubtful)} points "
        "are doubtful (doubtful.csv): look at those first. overview.jpg shows some."
    )
    known = [(m, truth) for m, s in zip(drawn, samples, strict=True) if (truth := s.truth()) is not None]
    if known:
        print(format_table({args.rule: evaluate_masks(known)}, f"against the true masks of {len(known)} images"))
