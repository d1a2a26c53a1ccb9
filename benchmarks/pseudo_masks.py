"""Quality and speed of the initial pseudo-masks, from points alone, on a dataset with true masks.

    python benchmarks/pseudo_masks.py --data ../shared/data/sirst-v1 --out benchmarks/results/pseudo-masks.md

Every rule sees the image and its points: as given, moved by 1 to 3 pixels in a random direction (seeded), and coarse
(LESPS). The true masks serve the scores and the coarse points alone. Without --data, synthetic scenes.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bilevel.checkpoint import write_atomically
from istd.data.layouts import Dataset, Sample, load_folder
from istd.data.points import Points, coarse_points, jittered_points
from istd.data.scenes import synthetic_dataset
from istd.labels import INITIAL_MASKS
from istd.metrics import evaluate_masks


def truth_of(sample: Sample) -> np.ndarray:
    truth = sample.truth()
    if truth is None:
        raise SystemExit(f"error: image {sample.name!r} has no true mask, which the scores need")
    return truth


def points_of(sample: Sample, kind: str, seed: int) -> Points:
    """The sample's points as given, coarse, or moved by some pixels."""
    if kind == "given":
        return sample.points
    if kind == "coarse":
        return coarse_points(truth_of(sample), seed)
    return jittered_points(sample.points, float(kind.split()[0]), sample.image.shape[:2], seed)


def table(dataset: Dataset) -> str:
    """A markdown table over rules, splits and kinds of points."""
    lines = [
        "| rule | split | points | IoU % | nIoU % | Pd % | Fa 1e-6 | ms an image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    splits = (("train+val", dataset.train + dataset.val), ("test", dataset.test))
    for rule_name in INITIAL_MASKS:
        rule = INITIAL_MASKS[rule_name]
        for split, samples in splits:
            for kind in ("given", "coarse", "1 px", "2 px", "3 px"):
                moved = [points_of(s, kind, i) for i, s in enumerate(samples)]
                start = time.perf_counter()
                drawn = [rule(replace(s, points=p)).mask for s, p in zip(samples, moved, strict=True)]
                ms = 1e3 * (time.perf_counter() - start) / len(samples)
                m = evaluate_masks(zip(drawn, map(truth_of, samples), strict=True))
                scores = f"{100 * m['IoU']:.1f} | {100 * m['nIoU']:.1f} | {100 * m['Pd']:.1f} | {1e6 * m['Fa']:.1f}"
                lines.append(f"| {rule_name} | {split} | {kind} | {scores} | {ms:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="dataset folder with masks; without it, synthetic scenes")
    p.add_argument("--out", type=Path, help="markdown file for the table")
    args = p.parse_args()
    text = table(load_folder(args.data) if args.data is not None else synthetic_dataset())
    print(text)
    if args.out is not None:
        head = "# Initial pseudo-masks\n\nCommand: `python benchmarks/pseudo_masks.py --data DIR --out FILE`.\n\n"
        write_atomically(args.out, lambda file: file.write((head + text).encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
