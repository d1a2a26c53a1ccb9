"""MCLC: a pseudo-mask by clustering superpixels of many noisy copies of the window around a point."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from istd.data.dataset import Sample
from istd.labels.crf import DenseCRF
from istd.labels.initial import INITIAL_MASKS, Image, InitialMask, Mask, window_around


@dataclass(frozen=True)
class MonteCarloClustering:
    """The start of MCLC: how often a pixel shares the point's superpixel when salt noise is drawn anew.

    In a window around the point, taken as a colour image, `repeats` times: set a share `noise` of the values of each
    channel to 1 (so that 1 - (1 - noise)^3 of the pixels change), cut the window into `segments` superpixels (SLIC),
    and count the one that holds the point. With h how often a pixel was counted, for whichever point of the image, the
    mask is {h > max(h) / 2}, max over the window; where windows overlap, the later point decides. The release refines
    h / max(h) by a dense conditional random field (`crf`) and takes the window's size from the true mask's area
    (`AreaPrior`); here neither is done unless asked: the window has the size of the largest small target and a margin.

    Attributes:
        repeats: number of noisy copies; published 50 in the code.
        noise: share of white values in each of three channels; published 0.05.
        segments: superpixels a window; published 9.
        compactness: of SLIC; published 20.
        half: half side of the window: 81 px of the SPIE definition is 9x9, and 4 px of margin on each side.
        seed: of the noise, together with the point's place; the release has none.
        crf: refines h / max(h) in the place of the threshold, or None.

    Source: Li et al. (MCLC, ICCV 2023) and its released code.
    """

    repeats: int = 50
    noise: float = 0.05
    segments: int = 9
    compactness: float = 20.0
    half: int = 8
    seed: int = 0
    crf: DenseCRF | None = None

    released_crf: ClassVar[DenseCRF] = DenseCRF(bilateral=(32, 13, 10), smoothness=(3, 3), iterations=1)

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image."""
        image, points = sample.image, sample.points
        mask, hit = np.zeros(image.shape, dtype=bool), np.zeros((self.repeats, *image.shape), dtype=bool)
        windows = [(window_around(image.shape, row, col, self.half), (row, col)) for row, col in points.tolist()]
        for (rows, cols, r, c), place in windows:
            hit[:, rows, cols] |= self._parts(image[rows, cols], r, c, np.random.default_rng((self.seed, *place)))
        counts = hit.sum(axis=0)
        for (rows, cols, _, _), _ in windows:
            window, h = image[rows, cols], counts[rows, cols]
            mask[rows, cols] = 2 * h > h.max() if self.crf is None else self.crf(h / h.max(), window)
        return InitialMask(mask, np.ones(len(points), dtype=bool))

    def _parts(self, window: Image, row: int, col: int, rng: np.random.Generator) -> Mask:
        """`(repeats, h, w)`: which pixels share the superpixel of a place, copy by copy."""
        from skimage.segmentation import slic  # half a second that no other rule needs

        found = []
        for _ in range(self.repeats):
            # As a colour image: SLIC then measures lightness from 0 to 100, to which the published compactness belongs.
            noisy = self.salted(window, rng)
            parts = slic(noisy, n_segments=self.segments, compactness=self.compactness)
            found.append(parts == parts[row, col])
        return np.stack(found)

    def salted(self, window: Image, rng: np.random.Generator) -> NDArray[np.float64]:
        """`(h, w)` -> `(h, w, 3)` with salt noise, drawn for each channel alone."""
        colour = np.repeat(window[..., None].astype(np.float64), 3, axis=2)
        return np.where(rng.random(colour.shape) < self.noise, 1.0, colour)


INITIAL_MASKS.register("monte-carlo", MonteCarloClustering())
