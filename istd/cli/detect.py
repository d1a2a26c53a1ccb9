"""`istd detect`: a trained student on a folder of images; no labels are needed."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from istd.cli.common import (
    SkippedInputs,
    add_device_flags,
    add_mask_flags,
    add_student_flags,
    load_student_of,
    masks_kept,
    refuse_overwriting,
    write_mask,
    write_table,
)
from istd.data.images import read_image
from istd.data.layouts import Sample, find_images
from istd.regions import find_regions
from istd.runs.report import PANELS, draw_masks, evenly


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Find the targets in a folder of images: NAME.png with 0 and 255 for every image, a list of all "
        "detections (image, x, y, area in pixels, largest probability), and a picture of some."
    )
    add_student_flags(p)
    p.add_argument("--images", type=Path, required=True, help="folder of images, or one with a folder images/")
    add_mask_flags(p)
    add_device_flags(p)
    p.set_defaults(run=detect, kept=masks_kept)


def detect(args: argparse.Namespace) -> None:
    """Predict every image, write masks, list and picture, and say what was found.

    Raises:
        ValueError: for a threshold outside (0, 1), or an `--out` that the images lie in.
        FileNotFoundError: if there is no student, or no image.
        FileExistsError: if a picture would be overwritten and `--overwrite` was not given.
        SkippedInputs: at the end, if files could not be read; all others are done.
    """
    predictor, images = load_student_of(args), find_images(args.images)
    refuse_overwriting(args, images, {file.parent for file in images.values()})
    shown = evenly(len(images), PANELS)
    rows, samples, masks, skipped = [], [], [], []
    for i, (name, file) in enumerate(tqdm(images.items(), "images", unit="image", disable=args.quiet)):
        try:
            image = read_image(file, predictor.sensor)
        except ValueError as error:
            skipped.append(str(error))
            continue
        probabilities = predictor(image)
        mask = probabilities > args.threshold
        write_mask(args.out / f"{name}.png", mask)
        found = detections(probabilities, mask)
        rows += [(name, f"{x:.1f}", f"{y:.1f}", f"{area:.0f}", f"{p:.3f}") for x, y, area, p in found]
        if i in shown:
            samples.append(Sample(name, image, np.rint(found[:, 1::-1]).astype(np.int64)))
            masks.append(mask)
    write_table(args.out / "detections.csv", ("image", "x", "y", "area", "probability"), rows)
    if samples:
        draw_masks(args.out / "overview.jpg", samples, masks)
    print(
        f"{len(rows)} detections in {len(images) - len(skipped)} images: masks, detections.csv and overview.jpg (some "
        f"of them) are in {args.out}/."
    )
    if skipped:
        raise SkippedInputs(f"{len(skipped)} of {len(images)} files were skipped:\n" + "\n".join(skipped))


def detections(probabilities: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The components of a mask, the surest first: `(n, 4)` columns x, y (centroid), area, largest probability."""
    regions = find_regions(mask)
    peaks = ndimage.maximum(probabilities, regions.labels, np.arange(1, len(regions) + 1))
    table = np.column_stack([regions.centroids[:, ::-1], regions.areas, peaks])
    return np.asarray(table[np.argsort(-table[:, 3], kind="stable")])
