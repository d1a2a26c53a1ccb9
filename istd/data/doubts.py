"""What a careful reader would ask about a set before training on it: each doubt is a sentence, or None."""

import hashlib
from collections.abc import Sequence

import numpy as np

from istd.data.dataset import Dataset, Sample
from istd.regions import find_regions

SMALL = 15  # px: longest side of a small target (Zhang et al., 2003, as used throughout the field: 0.15 % of 256 x 256)
NEAR, FAR = 1, 7  # px: half sides of the windows that a point's own brightness and its surround are measured in
MOST = 0.75  # share of points from which their images count as inverted
FEWEST = 4  # points below which nothing is said


def doubts_of(dataset: Dataset) -> list[str]:
    """All doubts about a dataset, the gravest first."""
    found = [random_split(dataset), shared_images(dataset), masks_are_points(dataset.samples)]
    found += [black_hot(dataset.samples), points_off_masks(dataset.samples), large_targets(dataset.samples)]
    found += [empty_images(dataset.samples), flat_images(dataset.samples)]
    return [doubt for doubt in found if doubt is not None]


def random_split(dataset: Dataset) -> str | None:
    """Whether the test images are a random draw."""
    drawn = [origin.set_name for origin in dataset.origins if origin.random_split]
    if not drawn:
        return None
    return (
        f"RANDOM SPLIT of {', '.join(drawn)}: no list names the test images, so results compare with no published ones."
    )


def black_hot(samples: Sequence[Sample]) -> str | None:
    """Whether targets are darker than what surrounds them."""
    darker = total = 0
    for sample in samples:
        for row, col in sample.points.tolist():
            around = _window(sample, row, col, FAR)
            own = float(_window(sample, row, col, NEAR).mean())
            middle = float(np.median(around))
            total += 1
            darker += own < middle - 0.5 * float(np.abs(around - middle).mean())
    if total < FEWEST or darker <= MOST * total:
        return None
    return f"at {darker} of {total} points the image is darker than around them: a black-hot sensor? Use --black-hot."


def _window(sample: Sample, row: int, col: int, half: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    rows = slice(max(row - half, 0), row + half + 1)
    return sample.image[rows, max(col - half, 0) : col + half + 1]


def shared_images(dataset: Dataset) -> str | None:
    """Whether test images are training or validation images too, pixel for pixel."""
    seen = {_pixels(s): s.name for s in dataset.train + dataset.val}
    twice = [(s.name, seen[key]) for s in dataset.test if (key := _pixels(s)) in seen]
    if not twice:
        return None
    return f"{len(twice)} test images are training images under another name, first {twice[0][0]!r} = {twice[0][1]!r}."


def _pixels(sample: Sample) -> bytes:
    content = np.ascontiguousarray(sample.image)
    return hashlib.blake2b(content.tobytes(), digest_size=16, salt=str(content.shape).encode()[:16]).digest()


def masks_are_points(samples: Sequence[Sample]) -> str | None:
    """Whether every region of every mask is a single pixel: point labels in a folder for masks."""
    areas = [area for s in samples if s.mask_source is not None for area in find_regions(_truth(s)).areas.tolist()]
    if len(areas) < FEWEST or max(areas) > 1:
        return None
    return (
        f"all {len(areas)} targets of the masks are single pixels: are these point labels? Move them to masks_coarse/."
    )


def points_off_masks(samples: Sequence[Sample]) -> str | None:
    """Whether points lie off their targets, or targets have no point."""
    off = bare = points = targets = 0
    for s in samples:
        if s.mask_source is None:
            continue
        regions = find_regions(_truth(s))
        hit = regions.labels[tuple(s.points.T)]
        points, targets = points + len(s.points), targets + len(regions)
        off += int((hit == 0).sum())
        bare += len(regions) - len(np.unique(hit[hit > 0]))
    if not off and not bare:
        return None
    return f"{off} of {points} points lie on no target of the masks, and {bare} of {targets} targets hold no point."


def large_targets(samples: Sequence[Sample]) -> str | None:
    """Whether targets are too large to count as small."""
    sides = [
        max(rows.stop - rows.start, cols.stop - cols.start)
        for s in samples
        if s.mask_source is not None
        for rows, cols in find_regions(_truth(s)).boxes
    ]
    large = sum(side > SMALL for side in sides)
    if 10 * large <= len(sides):
        return None
    return f"{large} of {len(sides)} targets are longer than {SMALL} px (the longest: {max(sides)}): not small ones."


def empty_images(samples: Sequence[Sample]) -> str | None:
    """Whether many images have no points."""
    bare = sum(not len(s.points) for s in samples)
    return f"{bare} of {len(samples)} images have no point." if 2 * bare > len(samples) else None


def flat_images(samples: Sequence[Sample]) -> str | None:
    """Whether images hold a single value."""
    flat = [s.name for s in samples if np.ptp(s.image) == 0]
    return f"{len(flat)} images hold a single value throughout, first {flat[0]!r}." if flat else None


def _truth(sample: Sample) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
    truth = sample.truth()
    assert truth is not None
    return truth
