"""Scores by what makes an image hard: the shape of its targets and their contrast to the surroundings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.metrics.pixel import PixelScores
from istd.metrics.target import TargetScores
from istd.regions import EIGHT_CONNECTED, find_regions

NAMES = ("salient", "filamentary", "faint", "camouflaged")
PUBLISHED_TARGETS = dict(zip(NAMES, (268, 400, 112, 725), strict=True))
"""Targets in each part of the standard SIRST3 test split (1079 images), from the Pd values of semantic-priors."""

MARGIN = 10  # pixels around a target that count as its surroundings, as in the field's local signal-to-clutter ratio


@dataclass(frozen=True)
class Characteristics:
    """Which of four kinds an image is: shape (regular, irregular) by contrast (high, low).

    Salient: regular, high contrast. Filamentary: irregular, high. Faint: regular, low. Camouflaged: irregular, low.
    The source names the four and gives neither definition, nor thresholds, nor lists; these definitions are ours. An
    image has the mean irregularity and the mean contrast of its targets (see `irregularity` and `contrast`).

    Attributes:
        irregular: irregularity above which an image's shapes are irregular.
        low: contrast below which an image's contrast is low.

    The defaults are `calibrate` on the 427 images of SIRST-v1: with them, the share of targets in images of irregular
    shapes and of low contrast is that of the published counts (1125 and 837 of 1505 on SIRST3's test split). They say
    which images of a set are its harder ones; to compare with the source's table, calibrate on SIRST3's test split.

    Source: semantic-priors (2026), section 3.1, for the four names.
    """

    irregular: float = 0.089
    low: float = 14.1

    def of(self, image: NDArray[np.float32], truth: NDArray[np.bool_]) -> str | None:
        """Kind of an image `(H, W)` with its true mask; None without a target."""
        measured = measure(image, truth)
        if measured is None:
            return None
        return NAMES[2 * int(measured[1] < self.low) + int(measured[0] > self.irregular)]

    @classmethod
    def calibrate(
        cls, samples: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]], targets: Sequence[int] | None = None
    ) -> "Characteristics":
        """Thresholds that give a set the published shares of targets with irregular shape, and with low contrast.

        Args:
            samples: images and true masks.
            targets: wanted numbers of targets by kind, in the order of `NAMES`; None takes the published ones.

        Raises:
            ValueError: if no image has a target.
        """
        salient, filamentary, faint, camouflaged = targets or tuple(PUBLISHED_TARGETS.values())
        rows = [(m, len(find_regions(truth))) for image, truth in samples if (m := measure(image, truth)) is not None]
        if not rows:
            raise ValueError("`samples` hold no target, so there is nothing to calibrate on.")
        values, counts = np.array([m for m, _ in rows]), np.array([n for _, n in rows])
        total = salient + filamentary + faint + camouflaged
        return cls(
            irregular=_quantile(values[:, 0], counts, (salient + faint) / total),
            low=_quantile(values[:, 1], counts, (faint + camouflaged) / total),
        )


def irregularity(mask: NDArray[np.bool_]) -> float:
    """How far a region is from a disc: `1 - |A n B| / |A u B|` with the disc B of its area around its centroid.

    In [0, 1): 0 for the pixels of a disc, 0.64 for a bar of 4 x 16; rises with elongation and with raggedness.
    """
    rows, cols = np.nonzero(mask)
    gap = np.hypot(np.arange(mask.shape[0])[:, None] - rows.mean(), np.arange(mask.shape[1])[None] - cols.mean())
    disc = np.zeros(mask.size, dtype=bool)
    disc[np.argsort(gap, axis=None, kind="stable")[: len(rows)]] = True  # as many pixels as the region, nearest first
    both = int((disc.reshape(mask.shape) & mask).sum())
    return 1 - both / (2 * len(rows) - both)


def contrast(image: NDArray[np.float32], region: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Local signal-to-clutter ratio `|mean of the region - mean around it| / deviation around it`.

    Around it means the region's bounding box grown by 10 px, without any target and the pixels that touch one, which
    the point-spread function blurs into both.
    """
    around = ~ndimage.binary_dilation(others | region, EIGHT_CONNECTED)
    values = image[around] if around.any() else image[~region]
    if not len(values):
        return 0.0
    return float(abs(image[region].mean() - values.mean()) / max(float(values.std()), 1e-6))


def measure(image: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Mean irregularity and mean contrast of an image's targets; None without any.

    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape != truth.shape:
        raise ValueError(f"`image` is {image.shape} but `truth` is {truth.shape}; sizes must agree.")
    regions, found = find_regions(truth), []
    for i, (rows, cols) in enumerate(regions.boxes):
        window = (
            slice(max(rows.start - MARGIN, 0), rows.stop + MARGIN),
            slice(max(cols.start - MARGIN, 0), cols.stop + MARGIN),
        )
        own = regions.labels[window] == i + 1
        found.append((irregularity(_padded(own)), contrast(image[window], own, truth[window])))
    return None if not found else (float(np.mean([f[0] for f in found])), float(np.mean([f[1] for f in found])))


def evaluate_by_characteristic(
    triples: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]],
    kinds: Characteristics | None = None,
) -> dict[str, dict[str, float]]:
    """IoU, nIoU, Pd and Fa, and the numbers of images and targets, for each kind of image that occurs.

    Args:
        triples: `(prediction, truth, image)`, each `(H, W)`; images without a target are left out.
        kinds: thresholds; None takes the defaults.
    """
    kinds = kinds or Characteristics()
    scores = {name: (PixelScores(), TargetScores()) for name in NAMES}
    for prediction, truth, image in triples:
        kind = kinds.of(image, truth)
        if kind is not None:
            for score in scores[kind]:
                score.update(prediction, truth)
    return {
        name: pixel.compute() | target.compute() | {"n_images": len(pixel.unions), "n_targets": target.targets}
        for name, (pixel, target) in scores.items()
        if pixel.unions
    }


def _padded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Room for the disc on every side: a long region at the image's edge has a disc that would cross it."""
    return np.pad(mask, max(mask.shape) // 2)


def _quantile(values: NDArray[np.float64], counts: NDArray[np.int64], share: float) -> float:
    """The value below which images hold nearest to `share` of all targets, between two images' values."""
    order = np.argsort(values, kind="stable")
    sorted_values, cumulative = values[order], np.cumsum(counts[order]) / counts.sum()
    last = min(int(np.abs(cumulative - share).argmin()), len(values) - 2) if len(values) > 1 else 0
    return float(sorted_values[last : last + 2].mean())
