"""`istd evaluate`: score a trained student on a split with true masks."""

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bilevel.checkpoint import write_atomically
from istd.commands.common import add_data_flags, add_device_flags, add_student_flags, load_student_of
from istd.data.layouts import SPLITS, load_folder
from istd.metrics import HolisticScore, OperatingCurve, evaluate_by_characteristic, evaluate_masks
from istd.report import draw_curve, format_table


def add(subparsers: Any) -> None:
    """Declare the flags."""
    p = subparsers.add_parser(
        "evaluate",
        help="score a trained student",
        description="Score a trained student on a split with true masks: IoU, nIoU, Pd, Fa at a threshold, overall "
        "and by kind of image (salient, filamentary, faint, camouflaged), and Pd and Fa over all thresholds.",
    )
    add_student_flags(p)
    add_data_flags(p, required=True)
    p.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the scores here")
    p.add_argument("--curve", type=Path, metavar="FILE", help="draw Pd over Fa here (PNG)")
    add_device_flags(p)
    p.set_defaults(run=evaluate)


def evaluate(args: argparse.Namespace) -> None:
    """Predict every image, score, print, and write what was asked for.

    Raises:
        ValueError: for a threshold outside (0, 1), or an image without a true mask.
    """
    predictor = load_student_of(args)
    samples = getattr(load_folder(args.data, args.points), args.split)
    curve, holistic, pairs = OperatingCurve(), HolisticScore(), []
    for sample in tqdm(samples, args.split, unit="image", disable=args.quiet):
        truth = sample.truth()
        if truth is None:
            raise ValueError(f"Image {sample.name!r} has no true mask, so there is nothing to score it against.")
        probabilities = predictor(sample.image)
        pairs.append((probabilities > args.threshold, truth))
        curve.update(probabilities, truth)
        holistic.update(probabilities, truth)
    scores = evaluate_masks(pairs)
    kinds = evaluate_by_characteristic((p, t, s.image) for (p, t), s in zip(pairs, samples, strict=True))
    points = curve.compute()
    rows = {f"  {name} ({kinds[name]['n_images']} images)": kinds[name] for name in kinds}
    print(format_table({str(args.student): scores, **rows}, f"{args.data.name}, {args.split}: {len(samples)} images"))
    whole = holistic.compute()
    print(
        f"over all thresholds: {100 * whole['score']:.1f} % (pixels {100 * whole['pixels']:.1f}, targets "
        f"{100 * whole['targets']:.1f}; a score of ours, see istd.metrics.HolisticScore)"
    )
    if args.json:
        facts = {"student": str(args.student), "split": args.split, "threshold": args.threshold}
        content = json.dumps({**facts, **scores, "kinds": kinds, "holistic": whole, "curve": points}, indent=2) + "\n"
        write_atomically(args.json, lambda file: file.write(content.encode()))
    if args.curve:
        draw_curve(args.curve, {args.student.stem: points})
