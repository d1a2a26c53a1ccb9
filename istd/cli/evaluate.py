"""`istd evaluate`: score a trained student on images with true masks."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bilevel.checkpoint import write_atomically
from istd.cli.common import add_device_flags, add_student_flags, load_student_of
from istd.cli.sets import add_folder_flag
from istd.data.layouts import Dataset, Sample, join, load_split, positions_by_set
from istd.inference.predict import StudentPredictor
from istd.metrics import HolisticScore, OperatingCurve, evaluate_by_characteristic, evaluate_masks
from istd.runs.report import draw_curve, format_table

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Score a trained student on images with true masks, read as those of its training: IoU, nIoU, Pd, "
        "Fa at a threshold, overall, by set where there are several, by kind of image (salient, filamentary, faint, "
        "camouflaged), and Pd and Fa over all thresholds. No points are needed."
    )
    add_student_flags(p)
    add_folder_flag(p, required=True)
    p.add_argument(
        "--split",
        default="test",
        metavar="NAME",
        help="train, val, test, all, or any list in the folder (test_no_neardup, idx_320/test) [test]",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the scores here")
    p.add_argument("--curve", type=Path, metavar="FILE", help="draw Pd over Fa here (PNG)")
    add_device_flags(p)
    p.set_defaults(run=evaluate)


def evaluate(args: argparse.Namespace) -> None:
    """Predict every image, score, print, and write what was asked for.

    Raises:
        FileNotFoundError: if there is no student, or no images.
        ValueError: for a threshold outside (0, 1), an unknown split, or an image without a true mask.
    """
    predictor = load_student_of(args)
    data = join([load_split(root, args.split, sensor=predictor.sensor) for root in args.data])
    samples = data.test
    bare = next((s.name for s in samples if s.mask_source is None), None)
    if bare is not None:
        raise ValueError(f"Image {bare!r} has no true mask, so there is nothing to score it against.")
    for origin in data.origins:
        drawn = "RANDOM SPLIT, NO LIST NAMES THE TEST IMAGES: " if origin.random_split else ""
        print(f"{origin.set_name}: {drawn}{origin.test}; masks {origin.masks}")
    pairs, curve, holistic = _predict(predictor, samples, args)
    scores = evaluate_masks(pairs)
    kinds = evaluate_by_characteristic((p, t, s.image) for (p, t), s in zip(pairs, samples, strict=True))
    sets = _by_set(samples, pairs)
    rows = {f"  {name} ({block['n_images']} images)": block for name, block in (sets | kinds).items()}
    print(format_table({str(args.student): scores, **rows}, f"{data.name}, {args.split}: {len(samples)} images"))
    whole = holistic.compute()
    print(
        f"over all thresholds: {100 * whole['score']:.1f} % (pixels {100 * whole['pixels']:.1f}, targets "
        f"{100 * whole['targets']:.1f}; a score of ours, see istd.metrics.HolisticScore)"
    )
    points = curve.compute()
    if args.json:
        content = _facts(args, data) | scores | {"sets": sets, "kinds": kinds, "holistic": whole, "curve": points}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(args.json, lambda file: file.write(text.encode()))
    if args.curve:
        draw_curve(args.curve, {args.student.stem: points})


def _predict(
    predictor: StudentPredictor, samples: Sequence[Sample], args: argparse.Namespace
) -> tuple[list[Pair], OperatingCurve, HolisticScore]:
    curve, holistic, pairs = OperatingCurve(), HolisticScore(), []
    for sample in tqdm(samples, args.split, unit="image", disable=args.quiet):
        truth = sample.truth()
        assert truth is not None
        probabilities = predictor(sample.image)
        pairs.append((probabilities > args.threshold, truth))
        curve.update(probabilities, truth)
        holistic.update(probabilities, truth)
    return pairs, curve, holistic


def _by_set(samples: Sequence[Sample], pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Scores of each set, where there are several."""
    parts = positions_by_set(samples)
    if len(parts) < 2:
        return {}
    return {name: evaluate_masks([pairs[i] for i in at]) | {"n_images": len(at)} for name, at in parts.items()}


def _facts(args: argparse.Namespace, data: Dataset) -> dict[str, Any]:
    facts = {"student": str(args.student), "split": args.split, "threshold": args.threshold}
    return facts | {"provenance": data.provenance, "sensor": data.sensor.to_dict()}
