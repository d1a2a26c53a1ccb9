"""Initial pseudo-masks: from an image and one point per target to a mask, with nothing but the points.

The default, `HalfMaximum`, takes the region around the target's peak above a fraction a of its contrast. Its constants
are physical, none is fitted to masks:

- levels a: six, geometrically spaced between the -3 dB point (1/2, the full width at half maximum, by which the size of
  a point-spread function is stated) and the -6 dB point (1/4). The vote of these nested regions is the middle one.
- core 11x11: a small target covers at most 9x9 pixels (81 px, the SPIE definition: 0.12 % of 256x256) and a blur of one
  pixel on each side; background is what lies outside the core.
- window 31x31: the core and the 10 px margin on each side over which local signal-to-clutter ratios are measured.
  A region that touches the window's border is no target (clutter reaches further); if every level does, the window is
  doubled once, for the rare target that is larger than the definition.
- search radius 3 px, spread 1.5 px: a detection counts as right within 3 px of the centre, so annotators are trusted to
  the same 3 px = 2 sigma; the peak is sought in an image smoothed by a point-spread function of sigma 1 px.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bilevel.registry import Registry
from istd.data.dataset import Sample
from istd.regions import component_at

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


class InitialMask(NamedTuple):
    """A pseudo-mask and how far each of its points can be relied on.

    Attributes:
        mask: `(H, W)` bool.
        reliable: `(n,)` bool, False where most levels of the rule failed at a point or a fallback was drawn.
    """

    mask: Mask
    reliable: NDArray[np.bool_]


@dataclass(frozen=True)
class HalfMaximum:
    """Region between the -3 dB and -6 dB contours around the peak next to the point (constants: module head).

    For a point p: c = argmax over |q - p|_inf <= radius of (G_1 * I - b)(q) exp(-|q - p|^2 / (2 spread^2)), with G_1 a
    Gaussian of sigma 1 px and b the window's median; peak = max of I over the 3x3 pixels around c; background = median
    of I over the window outside the core. With R_a the 8-connected component at the peak of
    {I >= background + a (peak - background)}, the mask holds the pixels that at least half of the R_a share which
    do not touch the window's border.

    Attributes:
        levels: fractions a of the contrast, in (0, 1).
        core: half side of the core in pixels.
        windows: half sides of the window, tried in this order.
        radius: farthest distance in pixels between point and peak along an axis.
        spread: standard deviation in pixels of the annotator's error.
    """

    levels: tuple[float, ...] = tuple(float(a) for a in np.geomspace(0.25, 0.5, 6))
    core: int = 5
    windows: tuple[int, ...] = (15, 31)
    radius: int = 3
    spread: float = 1.5

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image."""
        image, points = sample.image, sample.points
        mask = np.zeros(image.shape, dtype=bool)
        reliable = np.zeros(len(points), dtype=bool)
        for i, (row, col) in enumerate(points):
            reliable[i] = self._draw(mask, image, *self.peak(image, int(row), int(col)))
        return InitialMask(mask, reliable)

    def peak(self, image: Image, row: int, col: int) -> tuple[int, int]:
        """The brightest pixel near the point, weighted by how likely an annotator misses it by that much."""
        blur = 4  # four sigma of the smoothing, so that the patch's border does not matter
        rows, cols, r, c = window_around(image.shape, row, col, self.radius + blur)
        patch = ndimage.gaussian_filter(image[rows, cols], 1.0)
        wide, wide_cols, _, _ = window_around(image.shape, row, col, self.windows[0])
        dr, dc = np.ogrid[: patch.shape[0], : patch.shape[1]]
        dr, dc = dr - r, dc - c
        score = (patch - np.median(image[wide, wide_cols])) * np.exp(-(dr**2 + dc**2) / (2 * self.spread**2))
        score[(abs(dr) > self.radius) | (abs(dc) > self.radius)] = -np.inf
        best = np.unravel_index(int(score.argmax()), score.shape)
        return rows.start + int(best[0]), cols.start + int(best[1])

    def _draw(self, mask: Mask, image: Image, row: int, col: int) -> bool:
        for half in self.windows:
            rows, cols, r, c = window_around(image.shape, row, col, half)
            votes, accepted = self.votes(image[rows, cols], r, c, _open_sides(image.shape, rows, cols))
            if accepted:
                mask[rows, cols] |= 2 * votes >= accepted
                return 2 * accepted >= len(self.levels)
        rows, cols, _, _ = window_around(image.shape, row, col, 1)
        mask[rows, cols] = True  # 3x3: the smallest blob that a point-spread function leaves
        return False

    def votes(
        self, window: Image, row: int, col: int, open_sides: tuple[bool, ...] = (True,) * 4
    ) -> tuple[NDArray[np.int32], int]:
        """At how many levels each pixel of a window belongs to the peak at (row, col), and how many were accepted."""
        surround = np.ones(window.shape, dtype=bool)
        surround[max(row - self.core, 0) : row + self.core + 1, max(col - self.core, 0) : col + self.core + 1] = False
        background = float(np.median(window[surround]))
        rows, cols, _, _ = window_around(window.shape, row, col, 1)
        near = window[rows, cols]
        at = np.unravel_index(int(near.argmax()), near.shape)
        seed = rows.start + int(at[0]), cols.start + int(at[1])
        contrast = float(near.max()) - background
        votes = np.zeros(window.shape, dtype=np.int32)
        accepted = 0
        for level in self.levels if contrast > 0 else ():
            region = component_at(window >= background + level * contrast, *seed)
            if not _touches(region, open_sides):
                votes += region
                accepted += 1
        return votes, accepted


@dataclass(frozen=True)
class Square:
    """A square of `side` pixels around every point: the simplest rule, for comparison."""

    side: int = 5

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image."""
        image, points = sample.image, sample.points
        mask = np.zeros(image.shape, dtype=bool)
        for row, col in points:
            rows, cols, _, _ = window_around(image.shape, int(row), int(col), self.side // 2)
            mask[rows, cols] = True
        return InitialMask(mask, np.ones(len(points), dtype=bool))


def window_around(shape: tuple[int, ...], row: int, col: int, half: int) -> tuple[slice, slice, int, int]:
    """Slices of the window of half side `half`, clipped to the image, and the centre's place in it."""
    rows = slice(max(row - half, 0), min(row + half + 1, shape[0]))
    cols = slice(max(col - half, 0), min(col + half + 1, shape[1]))
    return rows, cols, row - rows.start, col - cols.start


def _open_sides(shape: tuple[int, ...], rows: slice, cols: slice) -> tuple[bool, ...]:
    """Which sides (top, bottom, left, right) of a window have more image behind them."""
    return rows.start > 0, rows.stop < shape[0], cols.start > 0, cols.stop < shape[1]


def _touches(region: Mask, open_sides: tuple[bool, ...]) -> bool:
    sides = (region[0], region[-1], region[:, 0], region[:, -1])
    return any(is_open and bool(side.any()) for is_open, side in zip(open_sides, sides, strict=True))


InitialRule = Callable[[Sample], InitialMask]
"""Draws the mask of one image from its points; nothing else of the sample is read, but by `AreaPrior`."""

INITIAL_MASKS: Registry[InitialRule] = Registry("initial pseudo-mask rule")
INITIAL_MASKS.register("half-maximum", HalfMaximum())
INITIAL_MASKS.register("square", Square())
INITIAL_MASKS.register("points", Square(side=1))  # the start of LESPS
