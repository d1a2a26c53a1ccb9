"""Adaptive histogram equalisation with limited contrast, on 8 bits, in the integers of OpenCV."""

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
LEVELS = 256


def equalise(image: Grey, clip: float, tiles: int) -> Grey:
    """CLAHE of a grey image: every tile's histogram is cut and made level, and pixels mix the maps of four tiles.

    A count above `clip` times the mean count (at least 1) is cut, and what is cut is spread over all levels. A level v
    becomes 255 times the share of the tile at or below v; bilinear weights between tile centres mix the results.

    Args:
        image: `(H, W)` uint8.
        clip: limit, in mean counts.
        tiles: number of tiles a side. Where a side does not divide, the image is mirrored until it does.

    Returns:
        `(H, W)` uint8.

    Source: Zuiderveld (Graphics Gems IV, 1994); rounding and mirroring as OpenCV's `createCLAHE` has them.
    """
    height, width = image.shape
    whole = image
    if height % tiles or width % tiles:  # both sides are then extended, one that divides by a whole row of tiles
        whole = np.pad(image, ((0, tiles - height % tiles), (0, tiles - width % tiles)), mode="reflect")
    h, w = (n // tiles for n in whole.shape)
    split = whole.reshape(tiles, h, tiles, w).swapaxes(1, 2).reshape(tiles, tiles, h * w)
    limit = max(int(clip * h * w / LEVELS), 1)
    maps = np.stack([[_level_map(tile, limit) for tile in row] for row in split])
    (top, bottom, down), (left, right, across) = (_neighbours(n, size, tiles) for n, size in ((height, h), (width, w)))
    down, level = down[:, None], image.astype(np.int64)

    def mapped(row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(maps[row[:, None], column[None], level], dtype=np.float32)

    upper = mapped(top, left) * (1 - across) + mapped(top, right) * across
    lower = mapped(bottom, left) * (1 - across) + mapped(bottom, right) * across
    return np.asarray(np.rint(upper * (1 - down) + lower * down), dtype=np.uint8)


def _level_map(tile: Grey, limit: int) -> Grey:
    counts = np.bincount(tile, minlength=LEVELS)
    excess = int(np.maximum(counts - limit, 0).sum())
    counts = np.minimum(counts, limit) + excess // LEVELS
    rest = excess % LEVELS
    if rest:
        counts[np.arange(rest) * max(LEVELS // rest, 1)] += 1
    scale = np.float32(LEVELS - 1) / np.float32(tile.size)
    shares = np.cumsum(counts).astype(np.float32) * scale
    return np.asarray(np.rint(shares).clip(0, LEVELS - 1), dtype=np.uint8)


def _neighbours(pixels: int, size: int, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For every pixel of a side the tile before and after it, and the share of the one after."""
    place = np.arange(pixels, dtype=np.float32) * np.float32(1 / np.float32(size)) - np.float32(0.5)
    before = np.floor(place).astype(np.int64)
    share = (place - before.astype(np.float32)).astype(np.float32)
    return before.clip(0), (before + 1).clip(max=tiles - 1), share
