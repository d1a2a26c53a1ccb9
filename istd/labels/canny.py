"""The published start of PAL and semantic-priors: the closed Canny contour around a point, exact on integers.

The release calls OpenCV on 8-bit windows. Whether an edge closes hangs on single grey levels and on ties between equal
gradients, so the rule is written here in the same integers instead of in another library's floating point: on the 171
training images of SIRST-v1 all masks are those of the released code (scikit-image's Canny gives 77 of them).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.data.dataset import Sample
from istd.labels.initial import INITIAL_MASKS, InitialMask, Mask
from istd.regions import EIGHT_CONNECTED, component_at, polygon_area

Integers = NDArray[np.int64]

TANGENT = 13573  # tan(22.5 deg) in units of 2^-15: where a gradient counts as horizontal


@dataclass(frozen=True)
class CannyContour:
    """A closed Canny contour around the point, if it is small enough; else the point alone.

    For a point at row r and column c, in the window of rows r - half to r + half - 1 (columns alike, clipped to the
    image) of the 8-bit image I:

    1. detail d = max(I - G * I, 0), G the 3x3 binomial kernel, rounded half up, borders mirrored;
    2. edges: Canny with thresholds `low` and `high` on |gx| + |gy| of 3x3 Sobel gradients (`canny_edges`);
    3. close by 3x3, fill holes, and take the 8-connected region that holds the point;
    4. if the polygon through its border pixels has an area of at most `max_area`, the region is the mask and the point
       is reliable.

    Attributes:
        half: half side of the window in pixels.
        low: gradients above this may be edges.
        high: gradients above this are edges, and so is what they are connected to.
        max_area: in square pixels between border pixels' centres: a square of 8x8 pixels has 49.

    Source: Yu et al. (PAL, 2025), released code; semantic-priors (2026) uses the same.
    """

    half: int = 10
    low: int = 20
    high: int = 40
    max_area: float = 50.0

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image."""
        image, points = sample.image, sample.points
        mask = np.zeros(image.shape, dtype=bool)
        reliable = np.zeros(len(points), dtype=bool)
        for i, (row, col) in enumerate(points.tolist()):
            top, left = max(row - self.half, 0), max(col - self.half, 0)
            window = image[top : row + self.half, left : col + self.half]
            region = component_at(self.closed_edges(np.rint(window * 255.0).astype(np.int64)), row - top, col - left)
            if region.any() and polygon_area(region) <= self.max_area:
                mask[top : row + self.half, left : col + self.half] |= region
                reliable[i] = True
            mask[row, col] = True
        return InitialMask(mask, reliable)

    def closed_edges(self, window: Integers) -> Mask:
        """Steps 1 to 3 on grey levels 0 to 255: the closed and filled edges of a window `(h, w)`."""
        edges = canny_edges(np.maximum(window - smoothed(window), 0), self.low, self.high)
        thick = ndimage.binary_dilation(edges, EIGHT_CONNECTED)
        closed = ndimage.binary_erosion(thick, EIGHT_CONNECTED, border_value=1)  # beyond the window nothing erodes
        return np.asarray(ndimage.binary_fill_holes(closed))


def smoothed(window: Integers) -> Integers:
    """The 3x3 binomial mean of grey levels `(h, w)`, rounded half up; borders are mirrored without repeating them."""
    padded = np.pad(window, 1, mode="reflect")
    rows: Integers = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8) >> 4)


def canny_edges(window: Integers, low: int, high: int) -> Mask:
    """Canny's edges of grey levels `(h, w)`, without smoothing.

    Gradients (gx, gy) are 3x3 Sobel sums, borders repeated, and m = |gx| + |gy|. A pixel with m > `low` is thin if m
    exceeds both neighbours along the gradient: left and right if |gy| < tan(22.5 deg) |gx|, above and below if
    |gy| > tan(67.5 deg) |gx|, else along the diagonal of the gradient's signs. Of two equal neighbours in a row or in a
    column the first one stays; of two on a diagonal neither. Thin pixels with m > `high`, and all thin pixels that are
    8-connected to one, are edges. Beyond the window m is 0.

    Source: Canny (1986), with the ties and the fixed point of OpenCV.
    """
    p = np.pad(window, 1, mode="edge")
    across = p[:-2] + 2 * p[1:-1] + p[2:]
    down = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    gx, gy = across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
    m = np.abs(gx) + np.abs(gy)
    x, y = np.abs(gx), np.abs(gy) << 15
    near_row = y < TANGENT * x
    near_column = y > TANGENT * x + (x << 16)  # tan 67.5 = 2 + tan 22.5
    q = np.pad(m, 1)
    left, right, above, below = q[1:-1, :-2], q[1:-1, 2:], q[:-2, 1:-1], q[2:, 1:-1]
    falling = (m > q[:-2, :-2]) & (m > q[2:, 2:])
    rising = (m > q[:-2, 2:]) & (m > q[2:, :-2])
    diagonal = np.where((gx ^ gy) < 0, rising, falling)
    thin = np.where(near_row, (m > left) & (m >= right), np.where(near_column, (m > above) & (m >= below), diagonal))
    thin &= m > low
    labels, _ = ndimage.label(thin, structure=EIGHT_CONNECTED)
    strong = np.unique(labels[thin & (m > high)])
    return np.asarray(np.isin(labels, strong) & thin)


INITIAL_MASKS.register("canny", CannyContour())
