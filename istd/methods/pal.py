"""PAL (2025): easy images first, labels that follow the network, hard images admitted as it improves.

What it is. A closed Canny contour around each point is the start mask, if it is small enough; images with at least
four of five points so explained train first. After a fifth of the schedule, every five epochs, labels move towards
what the network predicts around them (`istd.labels.evolution`), pixels that no prediction confirms fade by 0.97, and
a waiting image is admitted, up to four fifths of the schedule, once its prediction covers its points without too many
false alarms, a tolerance that loosens with time. The loss is cross-entropy, fourfold on label boundaries, over the
harder half of the pixels. No outer problem.

Where it departs from the release:

- Optimizer, schedule, augmentation, averaged weights and the choice of a checkpoint are those of every row here;
  PAL's own choose on the test split.
- Start masks are the release's, pixel by pixel (`istd.labels.canny`). On SIRST-v1's training and validation images
  they have an IoU of 28 % (`benchmarks/pseudo_masks.py`).
- Label updates and admissions are the release's to the last bit, too, in 8-bit labels (`evolution.stored`).
- The first update comes at a fifth of the schedule; the release begins one period later.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

from istd.labels import HardSampleAdmission, LabelEvolution, StartMasks, UpdateTimes
from istd.losses import SEGMENTATION_LOSSES
from istd.methods.base import METHODS, Context, Method, Parts
from istd.methods.evolving import Evolving, evolving_parts
from istd.objectives import Segmentation
from istd.schema import OneOf


@dataclass(frozen=True)
class PAL(Evolving):
    """Settings of PAL."""

    loss: Annotated[str, OneOf(SEGMENTATION_LOSSES)] = "edge-ohem"
    labels: StartMasks = field(default_factory=lambda: StartMasks(rule="canny"))
    updates: UpdateTimes = field(default_factory=lambda: UpdateTimes(start=0.2, until=1.0, every=5))
    evolution: LabelEvolution = field(
        default_factory=lambda: LabelEvolution(stored="uint8", anchors="ones", relative=False, cap=math.inf)
    )
    admission: HardSampleAdmission = field(default_factory=lambda: HardSampleAdmission(max_false_components=5.0))


def build(context: Context, settings: PAL) -> Parts:
    """A student on labels that follow it, and images that are admitted as it improves."""
    labels, callbacks = evolving_parts(context, settings)
    return Parts(context.student, Segmentation(settings.loss), labels, labels.hard, callbacks=callbacks)


METHODS.register(
    "pal",
    Method(
        "PAL: Canny start, easy images first, labels evolve and hard images are admitted",
        PAL,
        build,
        __doc__,
        fixed=("loss", "labels", "updates", "evolution", "admission"),
    ),
)
