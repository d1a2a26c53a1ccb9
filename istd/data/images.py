"""Reading images and masks from disk, with errors that name the file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MIN_SIDE = 16  # the stride of the deepest student stage


def read_image(path: Path) -> NDArray[np.float32]:
    """Read an infrared image as `(H, W)` float32 in [0, 1].

    8-bit grey, RGB, RGBA and palette images are reduced to luminance and divided by 255 (alpha is dropped). 16- and
    32-bit images, whose meaningful range differs from sensor to sensor, are stretched from their own minimum and
    maximum.

    Raises:
        ValueError: if the file is no image, has a side below 16 pixels or holds a value that is not finite.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raw = np.asarray(image, dtype=np.float32)
                low, high = float(raw.min()), float(raw.max())
                if not np.isfinite(low + high):
                    raise ValueError(f"{path} holds values that are not finite.")
                pixels = (raw - low) / (high - low) if high > low else np.zeros_like(raw)
            else:
                rgb = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image
                pixels = np.asarray(rgb.convert("L"), dtype=np.float32) / 255.0
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}).") from None
    if min(pixels.shape) < MIN_SIDE:
        raise ValueError(
            f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; every side must have at least {MIN_SIDE}."
        )
    return pixels


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a binary mask as `(H, W)` bool; the first channel counts, palettes are resolved.

    Raises:
        ValueError: if the file is no image or holds more than two levels (0 and one other).
    """
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image.convert("RGB") if image.mode in ("P", "PA", "1") else image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}).") from None
    if values.ndim == 3:
        values = values[..., 0]
    levels = np.unique(values)
    if len(levels[levels != 0]) > 1:
        shown = ", ".join(str(v) for v in levels[:6])
        raise ValueError(
            f"{path} is not a binary mask: it holds {len(levels)} levels ({shown}, ...) where 0 and one other are "
            "allowed; was it saved as JPEG or resized with interpolation? Threshold it and save it as PNG."
        )
    return np.asarray(values != 0)
