"""Dense conditional random field: pulls a soft mask to the edges of its window, as MCLC and diffuse-to-detect publish.

Optional: it needs the extra `crf` (the package `pydensecrf2`, which compiles C++ on installation).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from istd.labels.initial import Image, InitialRule, Mask


@dataclass(frozen=True)
class DenseCRF:
    """Mean-field inference of two classes on a window, fully connected.

    Every pair of pixels i, j of different classes costs `compat exp(-|x_i - x_j|^2 / (2 sxy^2) - |I_i - I_j|^2 /
    (2 srgb^2))` (bilateral) and, with `smoothness`, `compat' exp(-|x_i - x_j|^2 / (2 sxy'^2))`, with x the place in
    pixels and I the grey levels 0 to 255 in three equal channels; a single pixel costs -log of its probability.

    Attributes:
        bilateral: sxy, srgb and compat.
        smoothness: sxy' and compat' of the second term, or None.
        iterations: of the mean field.

    Source: Kraehenbuehl and Koltun (NeurIPS 2011), whose code the package wraps.
    """

    bilateral: tuple[float, float, float]
    smoothness: tuple[float, float] | None = None
    iterations: int = 1

    def __call__(self, foreground: NDArray[np.floating[Any]], window: Image) -> Mask:
        """Refine probabilities of the target.

        Args:
            foreground: `(h, w)` in [0, 1].
            window: `(h, w)` the image there, in [0, 1].

        Returns:
            `(h, w)` where the target is the likelier class.

        Raises:
            ModuleNotFoundError: without the extra `crf`.
        """
        try:
            from pydensecrf import densecrf
            from pydensecrf.utils import unary_from_softmax
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`crf` needs the package pydensecrf2; install it with `pip install 'bilevel-istd[crf]'`, or leave the "
                "option off."
            ) from error
        h, w = window.shape
        target = foreground.astype(np.float32)
        field = densecrf.DenseCRF2D(w, h, 2)
        field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(np.stack([1 - target, target]))))
        if self.smoothness is not None:
            field.addPairwiseGaussian(sxy=self.smoothness[0], compat=self.smoothness[1])
        grey = np.rint(window * 255).astype(np.uint8)
        sxy, srgb, compat = self.bilateral
        rgb = np.ascontiguousarray(np.stack([grey] * 3, axis=-1))
        field.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=rgb, compat=compat)
        background, found = np.array(field.inference(self.iterations), dtype=np.float32).reshape(2, h, w)
        return np.asarray(found > background)


def with_crf(rule: InitialRule) -> InitialRule:
    """The rule with the DenseCRF of its release.

    Raises:
        ValueError: if its source has none.
    """
    any_rule: Any = rule
    crf = getattr(any_rule, "released_crf", None)
    if crf is None:
        raise ValueError(f"`crf` refines the rules 'monte-carlo' and 'diffusion'; {rule!r} has none in its source.")
    refined: InitialRule = replace(any_rule, crf=crf)
    return refined
