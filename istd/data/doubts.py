"""What a careful reader would ask about a set before training on it: each doubt is a sentence, or None."""

import hashlib
from collections.abc import Sequence

import numpy as np

from istd.data.dataset import Dataset, Sample
from istd.regions import Regions, find_regions

SMALL = 15  # px: longest side of what counts as a small target; `crops.LOCAL` is defined by it too
NEAR, FAR = 1, 7  # px: half sides of the windows that a point's own brightness and its surround are measured in
MOST = 0.75  # share of points from which their images count as inverted
FEWEST = 4  # points below which nothing is said


Marked = Sequence[tuple[Sample, Regions]]


def doubts_of(dataset: Dataset) -> list[str]:
    """All doubts about a dataset, the gravest first."""
    samples = dataset.samples
    marked = [(s, find_regions(truth)) for s in samples if (truth := s.truth()) is not None]
    found = [random_split(dataset), shared_images(dataset), masks_are_points(marked), black_hot(samples)]
    found += [points_off_masks(marked), large_targets(marked), empty_images(samples), flat_images(samples)]
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


def masks_are_points(marked: Marked) -> str | None:
    """Whether every region of every mask is a single pixel: point labels in a folder for masks."""
    areas = [area for _, regions in marked for area in regions.areas.tolist()]
    if len(areas) < FEWEST or max(areas) > 1:
        return None
    return f"all {len(areas)} targets of the masks are single pixels: point labels? Move them to masks_coarse/."


def points_off_masks(marked: Marked) -> str | None:
    """Whether points lie off their targets, or targets have no point."""
    hits = [regions.labels[tuple(sample.points.T)] for sample, regions in marked]
    off, points = sum(int((hit == 0).sum()) for hit in hits), sum(len(hit) for hit in hits)
    targets = sum(len(regions) for _, regions in marked)
    bare = targets - sum(len(np.unique(hit[hit > 0])) for hit in hits)
    if not off and not bare:
        return None
    return f"{off} of {points} points lie on no target of the masks, and {bare} of {targets} targets hold no point."


def large_targets(marked: Marked) -> str | None:
    """Whether targets are too large to count as small."""
    sides = [max(r.stop - r.start, c.stop - c.start) for _, regions in marked for r, c in regions.boxes]
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
