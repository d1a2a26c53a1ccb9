"""Reading true masks by one rule, stated once: which pixels of a mask file are target.

With v a mask's values and M the largest of them,

    target = v > 0,  unless M >= 128 and the pixels with 0 < v <= M / 8 outnumber those above: then target = v > M / 2.

The first case is the rule of the published counts: it reads masks of 0 and 255, of 0 and 1, of several labels, and
those with anti-aliased edges (85 of IRSTD-1k's 1,001 masks hold a few values in between; all values above 0 make its
published 1,495 targets). The second is for masks whose levels were rounded, such as those saved as JPEG, whose
background is not 0 but a few of 255 levels; M tells them from masks that number their targets.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from istd.data.images import open_picture

FAINT = 1 / 8  # of the largest value: more than what rounding, and JPEG at quality 75, leave around 0
WHITE = 128  # from here on the largest value is a grey level, below it the number of a label
LARGEST_SHARE = 0.5  # of the pixels may be target; more is an inverted mask or a photograph
LARGEST_BETWEEN = 0.05  # of the pixels may lie between background and target level; edges of targets are far fewer


class TrueMask(NamedTuple):
    """A mask with how it was read.

    Attributes:
        mask: `(H, W)` bool.
        near_binary: whether the file held values besides 0 and one other.
        rounded: whether its background was rounded, so that half of the largest value was the threshold.
        in_alpha: whether it was read from the alpha channel, all colours being the same.
    """

    mask: NDArray[np.bool_]
    near_binary: bool
    rounded: bool
    in_alpha: bool


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask as `(H, W)` bool by the rule above.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file; see `read_true_mask`.
    """
    return read_true_mask(path).mask


def read_true_mask(path: Path) -> TrueMask:
    """Read a mask and say how it was read.

    Of several colour channels the largest counts. A mask that lies in the alpha channel is read from there.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no image, or cannot be a mask: more than half of it is target (inverted),
            more than 5 % lies between the levels (a photograph, a heat map), a value is negative or not finite, or
            colours and alpha hold different masks.
    """
    with open_picture(path) as image:
        values, in_alpha = _channels(image, path)
    levels, counts = _levels(values)
    if not np.isfinite(levels).all() or levels[0] < 0:
        raise ValueError(f"{path} is not a mask: it holds negative values, or such as are not finite.")
    largest = levels[-1]
    faint = (levels > 0) & (levels <= FAINT * largest)
    solid = levels > FAINT * largest
    rounded = largest >= WHITE and bool(counts[faint].sum() > counts[solid].sum())
    near_binary = int((levels > 0).sum()) > 1
    between = counts[solid & (levels < (1 - FAINT) * largest)].sum() / values.size
    if near_binary and between > LARGEST_BETWEEN:
        raise ValueError(
            f"{path} is not a mask: {100 * between:.0f} % of its pixels lie between background and target "
            f"({len(levels)} levels). Is it an image, or a map of probabilities? Threshold it and save it as PNG."
        )
    mask = values > largest / 2 if rounded else values > 0
    if mask.mean() > LARGEST_SHARE:
        raise ValueError(
            f"{path} is not a mask of small targets: {100 * mask.mean():.0f} % of its pixels are not 0. Is it "
            "inverted? Targets are white (above 0) on black (0)."
        )
    return TrueMask(mask, near_binary, rounded, in_alpha)


def _levels(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The values that occur, rising, and how often each does."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return np.flatnonzero(counts).astype(np.float64), counts[counts > 0]
    levels, counts = np.unique(values, return_counts=True)
    return levels.astype(np.float64), counts


def _channels(image: Image.Image, path: Path) -> tuple[NDArray[Any], bool]:
    """One value for each pixel, and whether it is its alpha."""
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        return values, False
    if image.mode not in ("LA", "RGBA", "La", "RGBa"):
        return values.max(axis=2), False
    colour, alpha = values[..., :-1].max(axis=2), values[..., -1]
    if np.ptp(alpha) == 0:
        return colour, False
    if np.ptp(colour) == 0:
        return alpha, True
    if np.array_equal(colour > 0, alpha > 0):
        return colour, False
    raise ValueError(
        f"{path} holds one mask in its colours and another in its alpha channel; save the right one as grey PNG."
    )
