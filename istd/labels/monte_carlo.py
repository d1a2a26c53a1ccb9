"""MCLC: a pseudo-mask by clustering superpixels of many noisy copies of the window around a point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic

from istd.data.points import Points
from istd.labels.initial import INITIAL_MASKS, Image, InitialMask, window_around


@dataclass(frozen=True)
class MonteCarloClustering:
    """The start of MCLC: how often a pixel shares the point's superpixel when salt noise is drawn anew.

    In a window around the point, `repeats` times: set a share `noise` of the pixels to white, cut the window into
    `segments` superpixels (SLIC), and count the one that holds the point. With h the counts, the mask is
    {h > max(h) / 2}. The release refines h by a dense conditional random field and takes the window's size from the
    true mask's area; neither is done here: the window has one size, that of the largest small target and a margin.

    Attributes:
        repeats: number of noisy copies; published 50 in the code.
        noise: share of white pixels; published 0.05.
        segments: superpixels a window; published 9.
        compactness: of SLIC; published 20.
        half: half side of the window: 81 px of the SPIE definition is 9x9, and 4 px of margin on each side.
        seed: of the noise, together with the point's place.

    Source: Li et al. (MCLC, ICCV 2023), as measured from its released code.
    """

    repeats: int = 50
    noise: float = 0.05
    segments: int = 9
    compactness: float = 20.0
    half: int = 8
    seed: int = 0

    def __call__(self, image: Image, points: Points) -> InitialMask:
        """Draw the mask of one image: `(H, W)` float32 in [0, 1], `(n, 2)` rows and columns."""
        mask = np.zeros(image.shape, dtype=bool)
        for row, col in points.tolist():
            rows, cols, r, c = window_around(image.shape, row, col, self.half)
            counts = self._counts(image[rows, cols], r, c, np.random.default_rng((self.seed, row, col)))
            mask[rows, cols] |= 2 * counts > counts.max()
        return InitialMask(mask, np.ones(len(points), dtype=bool))

    def _counts(self, window: Image, row: int, col: int, rng: np.random.Generator) -> NDArray[np.int64]:
        counts = np.zeros(window.shape, dtype=np.int64)
        for _ in range(self.repeats):
            noisy = np.where(rng.random(window.shape) < self.noise, 1.0, window)
            # As a colour image: SLIC then measures lightness from 0 to 100, to which the published compactness belongs.
            parts = slic(np.stack([noisy] * 3, axis=-1), n_segments=self.segments, compactness=self.compactness)
            counts += parts == parts[row, col]
        return counts


INITIAL_MASKS.register("monte-carlo", MonteCarloClustering())
