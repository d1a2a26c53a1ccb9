"""Reading images from disk, with errors that name the file. Nothing but the formats listed here is ever decoded."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffTags
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from istd.data.files import regular_file
from istd.data.sensor import SENSOR, SensorRange

MIN_SIDE = 16  # the stride of the deepest student stage
MAX_PIXELS = 2**26  # 8192 x 8192: above any infrared sensor, below what a crafted header could make us allocate
FORMATS = (PngImageFile.format, BmpImageFile.format, DibImageFile.format, JpegImageFile.format, TiffImageFile.format)
"""Decoders that a file is offered to. Pillow's full list holds one that starts an interpreter (PostScript)."""
EXTENSIONS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_KINDS = {
    "1": "1-bit",
    "L": "8-bit grey",
    "LA": "8-bit grey with alpha",
    "P": "8-bit palette",
    "RGB": "8-bit RGB",
    "RGBA": "8-bit RGB with alpha",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "I": "32-bit grey",
    "F": "floating point",
}
_SAMPLE_FORMAT, _SIGNED = 339, 2  # TIFF tags and their values
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_STRIPS = ((273, 279), (324, 325))  # TIFF tags: offsets and byte counts of strips, and of tiles


@contextmanager
def open_picture(path: Path, decode: bool = True) -> Iterator[Image.Image]:
    """Open and decode one picture, turned as its EXIF orientation says.

    Args:
        path: the file.
        decode: whether pixels are wanted; without them, the header alone is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no regular file, in another format (whatever its name ends in), larger
            than 8192 x 8192 pixels, truncated, holds several pages, or values that Pillow reads with
            loss (colours of 16 bits, signed bytes).
    """
    regular_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of (large images, odd EXIF) is checked here
            with Image.open(path, formats=FORMATS) as image:
                _check_header(image, path)
                if decode:
                    image.load()
                    turned = ImageOps.exif_transpose(image)
                else:
                    turned = image
    except _Refused as refusal:
        raise ValueError(str(refusal)) from None
    except Exception as error:  # decoders of broken files raise some twenty kinds, from SyntaxError to struct.error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image ({reason}); PNG, BMP, JPEG and TIFF are read.") from None
    yield turned


class _Refused(Exception):
    """A picture that Pillow would open, but that is not what it should be."""


def _check_header(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(
            f"{path} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}; cut it into several images."
        )
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format not in ("JPEG", "MPO"):  # the further pictures of a JPEG are previews
        raise _Refused(f"{path} holds {pages} pages, of which a single one could be read; save each as a file.")
    lost = _lost(image)
    if lost:
        raise _Refused(f"{path} holds {lost}, which cannot be read without loss; save it as 8- or 16-bit grey.")
    if image.format == "TIFF":
        size = path.stat().st_size
        for offsets, counts in _STRIPS:
            tags = getattr(image, "tag_v2", {})
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
                if offset + count > size:
                    name = TiffTags.lookup(offsets).name
                    raise _Refused(f"{path} is truncated: {name} points beyond its {size} bytes; copy the file again.")


def _lost(image: Image.Image) -> str:
    """What Pillow would lose of a picture, in words: it cuts colours to 8 bits and takes signed bytes for unsigned."""
    rows = getattr(image, "tile", ())
    raw = next((str(mode) for row in rows for mode in (row.args if isinstance(row.args, tuple) else (row.args,))), "")
    if ";16" in raw and image.mode in ("LA", "RGB", "RGBA", "RGBX", "CMYK"):
        return "colours or an alpha channel of 16 bits"
    tags = getattr(image, "tag_v2", {})
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        return "signed bytes"
    if image.mode not in ("1", "L", "P") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return "deep values of which 0 is white"
    return ""


def picture_kind(path: Path) -> str:
    """Depth and colours of a picture, from its header: `8-bit grey`, `16-bit grey`, `8-bit RGB`.

    Raises:
        FileNotFoundError, ValueError: as `open_picture` does.
    """
    with open_picture(path, decode=False) as image:
        return _KINDS.get(image.mode, image.mode)


def read_raw(path: Path) -> NDArray[np.generic]:
    """The values of an image as `(H, W)`: uint8, or what a deeper file holds.

    8-bit grey, RGB, RGBA and palette images are reduced to luminance (alpha is dropped).

    Raises:
        FileNotFoundError, ValueError: see `open_picture`; also for a side below 16 pixels.
    """
    with open_picture(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raw = np.asarray(image)
        else:
            rgb = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image
            raw = np.asarray(rgb.convert("L"))
    if min(raw.shape) < MIN_SIDE:
        raise ValueError(f"{path} has {raw.shape[1]}x{raw.shape[0]} pixels; every side must have at least {MIN_SIDE}.")
    return raw


def read_image(path: Path, sensor: SensorRange | None = None) -> NDArray[np.float32]:
    """Read an infrared image as `(H, W)` float32 in [0, 1].

    Args:
        path: a PNG, BMP, JPEG or TIFF file.
        sensor: how raw values become intensities; None is `SensorRange()`: 8-bit images are divided by 255, deeper
            ones find a robust range of their own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no image, has a side below 16 pixels, holds a value that is not finite, or
            lies outside of the sensor's fixed range.
    """
    raw = read_raw(path)
    try:
        return (sensor or SENSOR)(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
