"""The masks that a run starts from: drawn from points by a rule, or, for comparison, the true ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from istd.data.dataset import Sample
from istd.labels.crf import with_crf
from istd.labels.initial import INITIAL_MASKS, InitialMask, InitialRule
from istd.labels.leak import AreaPrior, true_mask
from istd.labels.store import Labels, PseudoMasks
from istd.schema import OneOf, check

SOURCES = OneOf(("pseudo", "true"))


@dataclass(frozen=True)
class StartMasks:
    """The masks that training starts from.

    Attributes:
        rule: draws a mask around each point.
        leaks_mask_area: let the rule know the size class of each target, from its true mask, as the sources of
            diffuse-to-detect and MCLC do; more supervision than points, marked in every table.
        crf: refine the masks of "monte-carlo" and "diffusion" by a DenseCRF, as published (extra `crf`).
        train: "pseudo" masks, or the "true" ones of all images (full supervision).
        validation: what the outer objective and the choice of a checkpoint see on validation images: their "pseudo"
            masks, or their "true" ones (more supervision than points).
    """

    rule: Annotated[str, OneOf(INITIAL_MASKS)] = "half-maximum"
    leaks_mask_area: bool = False
    crf: bool = False
    train: Annotated[str, SOURCES] = "pseudo"
    validation: Annotated[str, SOURCES] = "pseudo"

    def __post_init__(self) -> None:
        check(self)

    def draw(
        self, samples: Sequence[Sample], training: NDArray[np.int64], validation: NDArray[np.int64], admit_all: bool
    ) -> Labels:
        """The labels of a run.

        Args:
            samples: training and validation images.
            training: positions of the training images.
            validation: positions of the validation images, which take part from the start.
            admit_all: let training images whose start is doubtful take part, too.

        Raises:
            ValueError: if a true mask is asked for that there is not.
        """
        if self.train == "true":
            masks = PseudoMasks.draw(samples, _copied, admit_all=True)
            return Labels(replace(masks, fixed=np.ones(len(masks), dtype=bool)))
        masks = PseudoMasks.draw(samples, self._rule(), admit_all).admitting(validation)
        if self.validation == "true":
            masks = masks.fixing(validation, [true_mask(samples[i]) for i in validation])
        if not masks.admitted[training].any():
            masks = masks.admitting(training)  # nothing to start from otherwise
        return Labels(masks)

    def _rule(self) -> InitialRule:
        rule = INITIAL_MASKS[self.rule]
        if self.crf:
            rule = with_crf(rule)
        return AreaPrior(rule) if self.leaks_mask_area else rule


def _copied(sample: Sample) -> InitialMask:
    return InitialMask(true_mask(sample), np.ones(len(sample.points), dtype=bool))
