"""Connected components of a mask and their statistics: the one place that labels a mask."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class Regions(NamedTuple):
    """The 8-connected components of a binary mask, in raster order of their first pixel.

    Attributes:
        labels: `(H, W)` int32, 0 for the background and i for component i = 1..n.
        areas: `(n,)` pixel counts.
        centroids: `(n, 2)` float64 rows and columns of the centres of mass.
        boxes: n pairs of slices that bound each component.
    """

    labels: NDArray[np.int32]
    areas: NDArray[np.int64]
    centroids: NDArray[np.float64]
    boxes: list[tuple[slice, slice]]

    def __len__(self) -> int:
        """Number of components."""
        return len(self.areas)

    def mask(self, i: int) -> NDArray[np.bool_]:
        """`(H, W)` mask of component i, counted from 0."""
        return np.asarray(self.labels == i + 1)


def find_regions(mask: NDArray[np.generic]) -> Regions:
    """Label the 8-connected components of `mask != 0`.

    Args:
        mask: `(H, W)`, any dtype; non-zero is foreground.

    Returns:
        The components with areas and centroids; empty arrays if there is none.
    """
    labels, n = ndimage.label(mask, structure=EIGHT_CONNECTED, output=np.int32)
    areas = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    rows, cols = np.nonzero(labels)
    ids = labels[rows, cols]
    sums = [np.bincount(ids, weights=axis, minlength=n + 1)[1:] for axis in (rows, cols)]
    centroids = np.stack(sums, axis=1) / np.maximum(areas, 1)[:, None]
    return Regions(labels, areas, centroids, list(ndimage.find_objects(labels)))


def component_at(mask: NDArray[np.bool_], row: int, col: int) -> NDArray[np.bool_]:
    """The 8-connected component of `mask` that holds pixel (row, col); all False if that pixel is background."""
    labels, _ = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return np.asarray((labels == labels[row, col]) & mask[row, col])


def polygon_area(region: NDArray[np.bool_]) -> float:
    """Area within the closed line through the centres of a region's border pixels, in square pixels.

    Every 2x2 block of pixels counts 1 if all of it belongs to the region and 1/2 if three quarters do: the line then
    cuts its corner. A single pixel, and any line one pixel wide, has area 0.

    Args:
        region: `(h, w)`, without holes.
    """
    r = region.astype(np.int64)
    corners = r[:-1, :-1] + r[:-1, 1:] + r[1:, :-1] + r[1:, 1:]
    return float((corners == 4).sum() + 0.5 * (corners == 3).sum())
