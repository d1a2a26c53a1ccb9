"""How much the padding of images moves a student's scores, and where the pixels lie that it decides otherwise.

    python benchmarks/padding.py runs/x --data DIR [--split all]

The rule of `istd.inference.padding` (mirrored, to multiples of the student's own stride) beside multiples of twice
that, repeated borders and zeros.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from istd.data.layouts import load_split
from istd.inference.export import load_student
from istd.metrics import evaluate_masks

NEAR = 32  # pixels from the border


def main() -> int:
    """Score one student under every rule."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("student", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--split", default="all", help="train, val, test or all [all]")
    args = p.parse_args()
    predictor = load_student(args.student)
    samples = load_split(args.data, args.split, sensor=predictor.sensor).test
    student, stride = predictor.student, predictor.stride
    masks: dict[str, list[np.ndarray]] = {}
    for mode, times in (("reflect", 1), ("reflect", 2), ("replicate", 1), ("constant", 1)):
        found = masks[f"{mode}, multiples of {times * stride}"] = []
        for sample in samples:
            constants = torch.tensor([predictor.normalisation.constants(sample.image)])
            x = predictor.normalisation(torch.from_numpy(sample.image)[None, None], constants)
            height, width = sample.image.shape
            padding = (0, -width % (times * stride), 0, -height % (times * stride))
            with torch.no_grad():
                logits = student(F.pad(x, padding, mode=mode))
            found.append(logits[0, 0, :height, :width].numpy() > 0)
    first = next(iter(masks))
    print(f"{args.data.name}, {args.split}: {len(samples)} images\n")
    print("| padding | IoU % | nIoU % | Pd % | Fa 1e-6 | pixels decided otherwise | of them near the border |")
    print("|---" * 7 + "|")
    for name, found in masks.items():
        scores = evaluate_masks([(m, s.truth()) for m, s in zip(found, samples, strict=True)])
        moved = near = 0
        for one, other in zip(masks[first], found, strict=True):
            rows, columns = np.nonzero(one != other)
            edge = np.minimum(
                np.minimum(rows, one.shape[0] - 1 - rows), np.minimum(columns, one.shape[1] - 1 - columns)
            )
            moved, near = moved + len(rows), near + int((edge < NEAR).sum())
        numbers = [100 * scores["IoU"], 100 * scores["nIoU"], 100 * scores["Pd"], 1e6 * scores["Fa"]]
        print(f"| {name} | " + " | ".join(f"{v:.2f}" for v in numbers) + f" | {moved} | {near} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
