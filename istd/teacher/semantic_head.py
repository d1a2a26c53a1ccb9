"""A semantic head: frozen features say whether a bright spot is a target, learned from points alone in seconds. Ours.

Small targets and clutter are both local maxima of brightness; what tells them apart is what lies around, and of that a
network that has seen natural images knows more than local contrast does (`benchmarks/results/semantic-head.md`). So one
linear map on frozen features is fitted to tell annotated points from the other bright spots of the training images. It
knows no outlines, and is no detector of its own: it judges what others found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from istd.data.points import Points
from istd.regions import find_regions
from istd.teacher.spatial_features import SpatialFeatures

Image = NDArray[np.float32]

ON_TARGET = 3.0  # px between a detection and a target's centre that count as a hit (Pd of this field)
OFF_TARGET = 9.0  # px: a small target covers at most 9 x 9 (SPIE), so beyond this from its centre is not it
FOLDS = 5
STRENGTH = 1e-2  # C of the logistic regression


class Spots(NamedTuple):
    """Places of an image and what the points say of them.

    Attributes:
        places: `(n, 2)` rows and columns.
        target: `(n,)` bool.
    """

    places: NDArray[np.int64]
    target: NDArray[np.bool_]


def bright_spots(image: Image, count: int = 30, size: int = 15) -> NDArray[np.int64]:
    """The `count` most prominent local maxima of an image: rows and columns `(n, 2)`, the most prominent first.

    Maxima over 5 x 5 pixels of `G_1 * I`, a Gaussian of sigma 1 px, ranked by its white top-hat: by how far they rise
    above the darkest way around, with a square of `size` pixels (a small target and 3 px on each side).

    Args:
        image: `(H, W)`.
        count: how many at the most.
        size: side of the top-hat's square in pixels.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float64), 1.0)
    prominence = ndimage.white_tophat(smooth, size=size)
    places = np.argwhere((smooth == ndimage.maximum_filter(smooth, 5)) & (prominence > 0))
    order = np.argsort(-prominence[places[:, 0], places[:, 1]], kind="stable")
    return places[order[:count]]


def training_spots(image: Image, points: Points, count: int = 30) -> Spots:
    """The points, as targets, and the bright spots farther than 9 px from all of them, as clutter.

    Bright spots within 3 px of a point are targets too: an annotator's point is not always the peak. What lies between
    is left out: it may be the edge of a target.
    """
    spots = bright_spots(image, count)
    away = np.full(len(spots), np.inf)
    if len(points):
        away = np.sqrt(((spots[:, None].astype(float) - points[None]) ** 2).sum(-1)).min(1)
    near, far = spots[away <= ON_TARGET], spots[away > OFF_TARGET]
    places = np.concatenate([points.reshape(-1, 2), near, far]).astype(np.int64)
    target = np.arange(len(places)) < len(points) + len(near)
    return Spots(places, target)


@dataclass(frozen=True)
class SemanticHead:
    """One linear map on frozen features: `z(q) = w . F(q) + b`, the logit of "a target is here".

    Attributes:
        weight: w, `(sum D_k,)` float32, all depths side by side.
        bias: b.
        held_out: logits of the training targets, each by a map that was fitted without its image; sorted.
    """

    weight: Tensor
    bias: float
    held_out: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        features: SpatialFeatures,
        images: Sequence[Image],
        points: Sequence[Points],
        count: int = 30,
        strength: float = STRENGTH,
    ) -> "SemanticHead":
        """Fit the head to the training spots of images.

        Args:
            features: of `images`, in their order.
            images: `(H, W)` intensities.
            points: of every image its points `(n, 2)`.
            count: bright spots per image.
            strength: see `fit_spots`.

        Raises:
            ValueError: if lengths differ, or as `fit_spots` does.
        """
        if not len(features) == len(images) == len(points):
            raise ValueError(
                f"`features`, `images` and `points` must be of the same images, got {len(features)}, {len(images)} and "
                f"{len(points)}."
            )
        spots = [training_spots(image, p, count) for image, p in zip(images, points, strict=True)]
        return cls.fit_spots([features.points(i, s.places) for i, s in enumerate(spots)], spots, strength)

    @classmethod
    def fit_spots(
        cls, features: Sequence[Tensor], spots: Sequence[Spots], strength: float = STRENGTH
    ) -> "SemanticHead":
        """Logistic regression of spots on their features.

        With features standardised to x_j and targets y_j in {0, 1}: minimise
        `|w|^2 / 2 + C sum_j log(1 + exp(-(2 y_j - 1)(w . x_j + b)))`.

        Args:
            features: of every image those of its spots, `(n, sum D_k)`.
            spots: of every image.
            strength: C.

        Raises:
            ValueError: if there are no targets, or nothing else.
        """
        x = torch.cat(list(features)).double().numpy()
        y = np.concatenate([s.target for s in spots])
        if y.all() or not y.any():
            what = "clutter beside them: every bright spot lies at a point" if y.any() else "points"
            raise ValueError(f"A semantic head needs points and other bright spots; these images have no {what}.")
        fold = np.repeat(np.arange(len(spots)), [len(s.places) for s in spots]) % FOLDS
        held = np.full(len(y), np.nan)
        for out in (fold == k for k in range(FOLDS)):
            if out.any() and len(np.unique(y[~out])) == 2:
                weight, bias = _logistic(x[~out], y[~out], strength)
                held[out] = x[out] @ weight + bias
        weight, bias = _logistic(x, y, strength)
        return cls(torch.from_numpy(weight).float(), bias, np.sort(held[y & np.isfinite(held)]))

    def score(self, features: SpatialFeatures, index: int, places: NDArray[np.generic]) -> NDArray[np.float64]:
        """Logits z of places `(n, 2)` of image `index`: `(n,)`."""
        return np.asarray((features.points(index, places) @ self.weight).double().numpy() + self.bias)

    def logits(self, features: SpatialFeatures, index: int) -> NDArray[np.float32]:
        """The map of z over image `index`, `(H, W)`; its sigmoid is a probability.

        The map is linear, so it is taken on the features' own grids and interpolated afterwards: the same values as
        `score` at every pixel, for the price of one channel.
        """
        size = features.sizes[index]
        total = torch.full((1, 1, *size), self.bias)
        parts = torch.split(self.weight, [m.shape[0] for m in features.maps[index]])
        for level, w in zip(features.maps[index], parts, strict=True):
            flat = torch.einsum("d,dhw->hw", w, level.float())[None, None]
            total += F.interpolate(flat, size, mode="bilinear", align_corners=False)
        return np.asarray(total[0, 0].numpy())

    def floor(self, recall: float = 0.99) -> float:
        """The logit that this share of the training targets exceeds, judged by maps fitted without their images.

        Raises:
            ValueError: for a share outside (0, 1), or if all points lie in too few images to hold some out.
        """
        if not 0 < recall < 1:
            raise ValueError(f"`recall` must lie between 0 and 1, got {recall}.")
        if not len(self.held_out):
            raise ValueError("`floor` needs points that could be held out; all lie in the images of one fold.")
        return float(np.quantile(self.held_out, 1 - recall))


def component_scores(logits: NDArray[np.float32], mask: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of every 8-connected component of a mask, in the order of `find_regions`, the largest logit on it: `(n,)`."""
    regions = find_regions(mask)
    if not len(regions):
        return np.zeros(0)
    return np.asarray(ndimage.maximum(logits, regions.labels, np.arange(1, len(regions) + 1)), dtype=np.float64)


def vetoed(
    prediction: NDArray[np.float32],
    logits: NDArray[np.float32],
    floor: float,
    threshold: float = 0.5,
    points: Points | None = None,
) -> NDArray[np.float32]:
    """A prediction without the components that no target is seen on.

    At inference this is a veto; on training images, where the points are known, it takes false components from the
    predictions that label evolution and hard-sample admission read.

    Args:
        prediction: `(H, W)` probabilities, or a mask of zeros and ones.
        logits: `(H, W)` of `SemanticHead.logits`.
        floor: components whose score is below are set to 0 (`SemanticHead.floor`).
        threshold: components are those of `prediction > threshold`; what lies below stays as it is.
        points: `(n, 2)`; components that hold one stay, whatever their score.

    Returns:
        `(H, W)`, the prediction with nothing added.
    """
    mask = prediction > threshold
    false = np.flatnonzero(component_scores(logits, mask) < floor) + 1
    labels = find_regions(mask).labels
    if points is not None:
        false = np.setdiff1d(false, labels[points[:, 0], points[:, 1]])
    return np.where(np.isin(labels, false), np.float32(0), prediction).astype(np.float32)


def clutter_weights(
    image: Image, logits: NDArray[np.float32], points: Points, strength: float = 1.0, radius: int = 4, count: int = 30
) -> NDArray[np.float32]:
    """Weights of pixels that make a loss dwell on hard negatives: `(H, W)`, 1 and more.

    `1 + strength (1 - p(c))` on the pixels within `radius` of a bright spot c that is farther than 9 px from every
    point, with p the head's probability: what is bright and yet certainly clutter counts most. Where such discs
    overlap, the larger weight holds.

    Args:
        image: `(H, W)` intensities.
        logits: `(H, W)` of `SemanticHead.logits`.
        points: `(n, 2)`.
        strength: of the emphasis.
        radius: of the discs in pixels.
        count: bright spots.
    """
    spots = training_spots(image, points, count)
    weights = np.ones(image.shape, dtype=np.float32)
    rows, cols = np.ogrid[: image.shape[0], : image.shape[1]]
    for row, col in spots.places[~spots.target].tolist():
        doubt = 1 / (1 + np.exp(float(logits[row, col])))
        disc = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
        weights[disc] = np.maximum(weights[disc], np.float32(1 + strength * doubt))
    return weights


def _logistic(x: NDArray[np.float64], y: NDArray[np.bool_], strength: float) -> tuple[NDArray[np.float64], float]:
    """Logistic regression on standardised features, given as weights and bias of the features as they are."""
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-6)
    found = LogisticRegression(C=strength, max_iter=1000).fit((x - mean) / std, y)
    weight = found.coef_[0] / std
    return weight, float(found.intercept_[0] - weight @ mean)
