"""The start masks of diffuse-to-detect as its release draws them, for comparison with ours (`istd.labels.diffusion`).

Grey levels are equalised (`contrast_limited`). In the box of each target, 4 px wider, particles start at the point and
at bright spots of its superpixel and move by `X <- X + grad I dt + sqrt(2 D dt) N(0, 1)`, with
`D = D0 exp(-beta (alpha |grad I| + (1 - alpha) E))` and E the local entropy. Their histogram, smoothed and divided by
its maximum, is mixed with the superpixel, `rho h + (1 - rho) S`; one threshold of Otsu cuts the maps of all targets,
and a dense conditional random field refines each box.

The release takes a target's box and class from the area of its true mask; without, every target is a spot.

Source: Diffuse to Detect (2026), released annotation and the constants of its training script.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import rank
from skimage.segmentation import slic

from istd.data.dataset import Sample
from istd.labels.contrast_limited import Grey, equalise
from istd.labels.crf import DenseCRF
from istd.labels.initial import INITIAL_MASKS, InitialMask, Mask

Map = NDArray[np.float32]
MARGIN = 4  # px around the box
MORE_SOURCES = 5


class TargetClass(NamedTuple):
    """What the release does with targets up to an area: half side of the box, particles a source, moves, time step.

    `centred` is the share by which the distance from the point lowers the map of the smallest class.
    """

    largest: float
    half: int
    particles: int
    steps: int
    dt: float
    centred: float = 0.0


POINT = TargetClass(9, 5, 20, 3, 0.2 * 0.9, centred=0.25)
SPOT = TargetClass(81, 11, 260, 40, 0.2)
EXTENDED = TargetClass(np.inf, 25, 400, 120, 0.4)


@dataclass(frozen=True)
class ReleasedDiffusion:
    """The released annotation as a rule for start masks.

    Boxes have the largest released sides, which are drawn at random there; the noise has a seed and the point's place.

    Attributes:
        conductivity: D0.
        stopping: beta.
        balance: alpha.
        mixing: rho.
        seed: of the noise; the release has none.
        crf: refines the mask in each box, or None.
    """

    conductivity: float = 3.2
    stopping: float = 6.0
    balance: float = 0.6
    mixing: float = 0.84
    seed: int = 0
    crf: DenseCRF | None = None

    released_crf: ClassVar[DenseCRF] = DenseCRF(bilateral=(8, 10, 110), iterations=5)
    takes_areas: ClassVar[bool] = True

    def __call__(self, sample: Sample, areas: NDArray[Any] | None = None) -> InitialMask:
        """Draw the mask of one image, from the `(n,)` true areas of its targets, where they are given."""
        image, points = sample.image, sample.points
        levels = equalise(eight_bits(np.rint(255 * image) / np.float32(255)), clip=1.0, tiles=4)
        grey = levels.astype(np.float32) / np.float32(255)
        kinds = [SPOT] * len(points)
        if areas is not None:
            kinds = [next(k for k in (POINT, SPOT, EXTENDED) if area <= k.largest) for area in areas]
        soft, boxes = np.zeros(image.shape, dtype=np.float32), []
        for place, kind in zip(points.tolist(), kinds, strict=True):
            box = [
                slice(max(x - kind.half, 0), min(x + kind.half, n - 1)) for x, n in zip(place, image.shape, strict=True)
            ]
            wide = [
                slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(box, image.shape, strict=True)
            ]
            at = place[0] - wide[0].start, place[1] - wide[1].start
            rng = np.random.default_rng((self.seed, *place))
            soft[*wide] = np.maximum(soft[*wide], self.soft_mask(grey[*wide], at, kind, rng))
            boxes.append(box)
        cut, mask = threshold(soft), np.zeros(image.shape, dtype=bool)
        for box in boxes:
            mask[*box] = cut[*box] if self.crf is None else self.crf(cut[*box].astype(np.float32), image[*box])
        return InitialMask(mask, np.ones(len(points), dtype=bool))

    def soft_mask(self, crop: Map, at: tuple[int, int], kind: TargetClass, rng: np.random.Generator) -> Map:
        """`rho h + (1 - rho) S` of one target, `(h, w)` in [0, 1]; `crop` is `(h, w)`, `at` the point in it."""
        parts = slic(crop, n_segments=16, compactness=0.32, channel_axis=None)
        own = parts == parts[at]
        heat, motion = np.zeros(crop.shape, dtype=np.float32), self.motion(crop, kind.dt)
        for source in [at, *further_sources(crop, own)]:
            np.add.at(heat, walk(motion, source, kind, rng), 1)
        kernel = np.array([0.25, 0.5, 0.25], dtype=np.float32)
        for axis in (0, 1):
            heat = ndimage.correlate1d(heat, kernel, axis, mode="mirror")
        fused = self.mixing * (heat / heat.max()) + (1 - self.mixing) * own
        if kind.centred:
            y, x = np.ogrid[: crop.shape[0], : crop.shape[1]]
            sigma = max(1.0, 0.25 * max(crop.shape))
            near = np.exp(-0.5 * ((y - at[0]) ** 2 + (x - at[1]) ** 2) / sigma**2)
            fused = fused * (1 - kind.centred + kind.centred * near)
        return np.asarray(np.clip(fused, 0, 1), dtype=np.float32)

    def motion(self, crop: Map, dt: float) -> NDArray[np.float64]:
        """What a particle does in one step at each pixel, `(3, h, w)`: drift down and across, and spread."""
        down, across = (np.asarray(g) for g in np.gradient(crop))
        entropy = rank.entropy(eight_bits(crop), footprint=np.ones((5, 5))) / 8.0
        hindrance = self.balance * np.sqrt(down**2 + across**2) + (1 - self.balance) * entropy
        diffusivity = self.conductivity * np.exp(-self.stopping * hindrance)
        return np.stack([down * dt, across * dt, np.sqrt(2 * diffusivity * dt)])


def walk(
    motion: NDArray[np.float64], source: tuple[int, int], kind: TargetClass, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels where the particles of one source end; `motion` is of one step, `(3, h, w)`.

    A particle is in the pixel of its coordinates cut towards zero; outside, in the nearest one.
    """
    at = np.repeat(np.array(source, dtype=np.float64)[:, None], kind.particles, axis=1)
    last = np.array(motion.shape[1:])[:, None] - 1
    for _ in range(kind.steps):
        row, column = at.astype(np.int64).clip(0, last)
        at = at + motion[:2, row, column] + motion[2, row, column] * rng.standard_normal((2, kind.particles))
    row, column = at.astype(np.int64).clip(0, last)
    return row, column


def further_sources(crop: Map, own: Mask) -> list[tuple[int, int]]:
    """The first five maxima of 7x7 pixels, row by row, in a superpixel and above mean + 1.5 deviations."""
    grey = eight_bits(crop)
    top = (rank.maximum(grey, footprint=np.ones((7, 7))) == grey) & (crop > np.mean(crop) + 1.5 * np.std(crop))
    return [(int(y), int(x)) for y, x in np.argwhere(top & own)[:MORE_SOURCES]]


def threshold(soft: Map) -> Mask:
    """Where a map in [0, 1] of 8 bits lies above Otsu's threshold, or above 1/2 if ten pixels or fewer are not zero."""
    level = eight_bits(soft)
    if int((level > 0).sum()) <= 10:
        return np.asarray(level > 127)
    shares = np.bincount(level.ravel(), minlength=256) / level.size
    below, mean = np.cumsum(shares), np.cumsum(shares * np.arange(256))
    split = (below > 1e-7) & (below < 1 - 1e-7)
    between = np.zeros(256)
    between[split] = (mean[-1] * below[split] - mean[split]) ** 2 / (below[split] * (1 - below[split]))
    return np.asarray(level > between.argmax())


def eight_bits(x: NDArray[np.floating[Any]]) -> Grey:
    """`[0, 1]` -> 0 to 255, cut as the release cuts."""
    return (np.asarray(x, dtype=np.float32) * 255).astype(np.uint8)


INITIAL_MASKS.register("diffusion-released", ReleasedDiffusion())
