"""What was understood of a folder, in ten lines: the answer of `istd data`."""

from collections import Counter
from pathlib import Path

import numpy as np

from istd.data.dataset import SPLITS, Dataset
from istd.data.doubts import doubts_of
from istd.data.folder import Folder, open_folder
from istd.data.images import picture_kind
from istd.data.layouts import load_folder
from istd.data.lists import find_families
from istd.data.names import index_pictures
from istd.data.published import MASKS
from istd.data.sensor import SensorRange
from istd.regions import find_regions


def describe(
    root: Path, points: str = "auto", split: str | None = None, sensor: SensorRange | None = None
) -> tuple[list[str], Dataset]:
    """Lines on a folder, and its dataset.

    Args:
        root: the folder.
        points: as in `load_folder`.
        split: as in `load_folder`.
        sensor: as in `load_folder`.

    Raises:
        FileNotFoundError, ValueError: as `load_folder` does.
    """
    folder = open_folder(root)
    dataset = load_folder(root, points, split=split, sensor=sensor)
    (origin,), samples = dataset.origins, dataset.samples
    counts = ", ".join(f"{split} {len(getattr(dataset, split))} ({getattr(origin, split)})" for split in SPLITS)
    marked = sum(len(s.points) for s in samples)
    lines = [
        f"{dataset.name}: layout {origin.layout}, digest {dataset.digest()}",
        f"images: {len(folder.images)}, {_sizes(dataset)}",
        f"depth:  {_depth(folder)}; range {dataset.sensor}",
        f"masks:  {_masks(dataset)}",
        f"points: {marked} in {len(samples)} images, {origin.points}",
        f"splits: {counts}",
    ]
    unused = len(folder.images) - len(samples)
    lines += [f"        {unused} images stand in no split"] if unused else []
    others = _other_lists(folder, dataset)
    lines += [f"        other lists: {others}"] if others else []
    doubts = [*_ambiguities(folder), *doubts_of(dataset)]
    return [*lines, *(f"DOUBT:  {doubt}" for doubt in doubts or ["none"])], dataset


def _sizes(dataset: Dataset) -> str:
    sizes = Counter((s.image.shape[1], s.image.shape[0]) for s in dataset.samples)
    (width, height), most = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return f"all {width}x{height}"
    sides = np.array(list(sizes))
    smallest, largest = sides.min(axis=0), sides.max(axis=0)
    spread = f"{smallest[0]}..{largest[0]} x {smallest[1]}..{largest[1]}"
    return f"{spread} (width x height), {len(sizes)} sizes, most often {width}x{height} ({most})"


def _depth(folder: Folder) -> str:
    kinds = Counter(picture_kind(path) for path in folder.images.values())
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())


def _masks(dataset: Dataset) -> str:
    (origin,) = dataset.origins
    masks = [truth for s in dataset.samples if (truth := s.truth()) is not None]
    if not masks:
        return "none; nothing can be scored"
    areas = np.concatenate([find_regions(mask).areas for mask in masks])
    if not len(areas):
        return f"{len(masks)} without any target, {origin.masks}"
    spread = f"area {areas.min()}..{areas.max()} px, median {np.median(areas):.0f}"
    return f"{len(masks)} with {len(areas)} targets ({spread}), {origin.masks}"


def _other_lists(folder: Folder, dataset: Dataset) -> str:
    (origin,) = dataset.origins
    used = f"{origin.train} {origin.val} {origin.test}"
    files = [folder.where(path) for family in find_families(folder) for path in family.files.values()]
    return ", ".join(name for name in files if name not in used)


def _ambiguities(folder: Folder) -> list[str]:
    """Pictures that lie where masks may lie, but were not taken."""
    found = []
    other = {found.part.images for found in folder.parts}
    if not folder.mask_folders:
        for name in dict.fromkeys(name for part in folder.parts for name in part.part.masks if name not in other):
            files = index_pictures(folder.root / name)
            if files:
                found.append(
                    f"{name}/ holds {len(files)} pictures, but none is called as an image; first {min(files)!r}."
                )
    for name in MASKS:
        if folder.mask_folders and name not in folder.mask_folders and index_pictures(folder.root / name):
            found.append(f"{name}/ holds pictures too, but the masks are taken from {folder.mask_folders[0]}/.")
    return found
