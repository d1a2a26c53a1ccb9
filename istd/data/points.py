"""Point labels: one pixel per target, and how it is synthesised from a mask.

Points are `(n, 2)` int64 arrays of (row, column). The two synthetic kinds are those of Ying et al. (LESPS, 2023):
`centroid` is the floor of the region centroid, `coarse` adds Gaussian noise in proportion to the bounding box.
"""

import numpy as np
from numpy.typing import NDArray

from istd.regions import find_regions

Points = NDArray[np.int64]

NO_POINTS: Points = np.zeros((0, 2), dtype=np.int64)


def centroid_points(mask: NDArray[np.generic]) -> Points:
    """Floor of the centroid of every 8-connected region of `mask`, `(n, 2)` rows and columns."""
    regions = find_regions(mask)
    return np.floor(regions.centroids).astype(np.int64).reshape(-1, 2)


def coarse_points(mask: NDArray[np.generic], seed: int) -> Points:
    """A random point inside every region: centroid + N(0, 1/4) * half the box sides, redrawn until it hits the region.

    Args:
        mask: `(H, W)`, non-zero on targets.
        seed: seed of the generator; the same seed gives the same points.

    Source: Ying et al. (LESPS, CVPR 2023), coarse point labels.
    """
    rng = np.random.default_rng(seed)
    regions = find_regions(mask)
    points = []
    for i, (rows, cols) in enumerate(regions.boxes):
        half = np.array([rows.stop - rows.start, cols.stop - cols.start]) / 2
        inside = np.argwhere(regions.labels == i + 1)
        for _ in range(100):
            p = np.floor(regions.centroids[i] + rng.normal(0.0, 0.5, 2) * half).astype(np.int64)
            if (inside == p).all(axis=1).any():
                break
        else:  # a ring around its own centroid can reject every draw
            p = inside[rng.integers(len(inside))]
        points.append(p)
    return np.array(points, dtype=np.int64).reshape(-1, 2)


def jittered_points(points: Points, radius: float, shape: tuple[int, int], seed: int) -> Points:
    """Move every point by `radius` pixels in a random direction (clipped to the image): annotation error in tests."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, len(points))
    moved = np.rint(points + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)).astype(np.int64)
    return np.clip(moved, 0, np.array(shape) - 1)


def check_points(points: Points, shape: tuple[int, int], name: str, where: str = "") -> Points:
    """Return `points` unchanged, or raise if one lies outside an image of `shape`.

    Raises:
        ValueError: naming the image, the point, `where` it comes from and the image's size.
    """
    outside = (points < 0).any(axis=1) | (points >= np.array(shape)).any(axis=1)
    if outside.any():
        row, col = points[outside][0]
        raise ValueError(
            f"Image {name!r}: the point (x={col}, y={row}){f' of {where}' if where else ''} lies outside the image of "
            f"{shape[1]}x{shape[0]} pixels (width x height); x counts columns and y rows, both from 0."
        )
    return points
