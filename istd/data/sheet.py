"""A contact sheet: some images of a set with their points and masks, in one picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from istd.data.dataset import Sample

COLUMNS, ROWS = 6, 4
SIDE = 192  # px of a panel
POINT, OUTLINE, TEXT = (255, 140, 0), (0, 220, 90), (255, 255, 255)


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """Up to 24 samples, evenly spread, with points as rings and masks as outlines.

    Grey values are stretched to each image's 1st and 99.9th percentile.

    Raises:
        ValueError: if there is no sample.
    """
    if not samples:
        raise ValueError("There is no sample to draw.")
    chosen = np.linspace(0, len(samples) - 1, min(COLUMNS * ROWS, len(samples))).round().astype(int).tolist()
    columns = min(COLUMNS, len(chosen))
    sheet = Image.new("RGB", (columns * SIDE, -(-len(chosen) // columns) * (SIDE + 14)))
    for place, i in enumerate(chosen):
        sheet.paste(_panel(samples[i]), (place % columns * SIDE, place // columns * (SIDE + 14)))
    return sheet


def _panel(sample: Sample) -> Image.Image:
    height, width = sample.image.shape
    scale = min(SIDE / width, SIDE / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    low, high = np.quantile(sample.image, [0.01, 0.999])
    grey = np.clip((sample.image - low) / max(high - low, 1e-3), 0, 1)
    picture = Image.fromarray((255 * grey).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    truth = sample.truth()
    if truth is not None:
        picture.paste(OUTLINE, (0, 0), Image.fromarray(_outline(truth, size)))
    panel = Image.new("RGB", (SIDE, SIDE + 14))
    panel.paste(picture, (0, 14))
    draw = ImageDraw.Draw(panel)
    for row, col in sample.points.tolist():
        x, y = (col + 0.5) * scale, (row + 0.5) * scale + 14
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=POINT)
    draw.text((2, 1), sample.name.encode("ascii", "replace").decode()[-30:], fill=TEXT)
    return panel


def _outline(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """255 on the border of the mask at the size of the panel; no target is lost by shrinking."""
    rows, cols = np.nonzero(mask)
    small = np.zeros((size[1], size[0]), dtype=bool)
    if size[1] >= mask.shape[0]:
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    else:
        small[rows * size[1] // mask.shape[0], cols * size[0] // mask.shape[1]] = True
    grown = ndimage.binary_dilation(small, iterations=2)
    return np.where(grown & ~ndimage.binary_dilation(small), 255, 0).astype(np.uint8)
