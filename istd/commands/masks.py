"""`istd masks`: pseudo-masks from points, for a folder of images; no training."""

import argparse
from typing import Any

from tqdm import tqdm

from bilevel.checkpoint import write_atomically
from istd.commands.common import add_data_flags, add_mask_flags, masks_kept, refuse_overwriting, write_mask
from istd.data.layouts import load_samples
from istd.labels import INITIAL_MASKS
from istd.metrics import evaluate_masks
from istd.report import draw_masks, format_table


def add(subparsers: Any) -> None:
    """Declare the flags."""
    p = subparsers.add_parser(
        "masks",
        help="draw pseudo-masks from points",
        description="Draw a mask around every point label of a folder: NAME.png with 0 and 255 for every image, a list "
        "of the points that need a look, and a picture of some.",
    )
    add_data_flags(p, required=True)
    add_mask_flags(p)
    p.add_argument("--rule", choices=list(INITIAL_MASKS), default="half-maximum", help="default: half-maximum")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=masks, kept=masks_kept)


def masks(args: argparse.Namespace) -> None:
    """Draw, write, and say which points the rule could not trust.

    Raises:
        FileExistsError: if a picture would be overwritten and `--overwrite` was not given.
    """
    samples, rule = load_samples(args.data, args.points), INITIAL_MASKS[args.rule]
    refuse_overwriting(args, [s.name for s in samples])
    doubtful, drawn = ["image,x,y"], []
    for sample in tqdm(samples, "masks", unit="image", disable=args.quiet):
        found = rule(sample.image, sample.points)
        drawn.append(found.mask)
        write_mask(args.out / f"{sample.name}.png", found.mask)
        doubtful += [f"{sample.name},{col},{row}" for row, col in sample.points[~found.reliable].tolist()]
    text = "\n".join(doubtful) + "\n"
    write_atomically(args.out / "doubtful.csv", lambda file: file.write(text.encode()))
    draw_masks(args.out / "overview.jpg", samples, drawn)
    points = sum(len(s.points) for s in samples)
    print(
        f"{len(samples)} masks of {points} points in {args.out}/ by the rule {args.rule!r}; {len(doubtful) - 1} points "
        "are doubtful (doubtful.csv): look at those first. overview.jpg shows some."
    )
    known = [(m, truth) for m, s in zip(drawn, samples, strict=True) if (truth := s.truth()) is not None]
    if known:
        print(format_table({args.rule: evaluate_masks(known)}, f"against the true masks of {len(known)} images"))
