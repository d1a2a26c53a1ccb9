"""LESPS (2023): from the points alone, soft labels grow where the network responds.

What it is. A network that is trained on single pixels first learns whole targets before it learns that only their
centre counts ("mapping degeneration"). LESPS catches it in between: every five epochs, in a window around each label
region, pixels above an adaptive threshold that touch the region move half way to the prediction. Labels stay soft,
and the loss, a focal one, spares the pixels that a soft label suspects. No outer problem.

Where it departs from the release:

- Optimizer, schedule, augmentation, averaged weights and the choice of a checkpoint are those of every row here;
  LESPS trains with Adam and two drops of the rate for 400 epochs, and reports the test split's best.
- Evolution starts after an eighth of the schedule (the paper's 50 of 400 epochs); the release waits for the mean loss
  to fall below 10.
- The rule itself is the release's to the last bit, in 8-bit labels (`evolution.rule`, `evolution.stored`).
- A region's threshold rises with its size as published (`evolution.cap=inf`), so large targets cannot be confirmed.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

from istd.labels import LabelEvolution, StartMasks, UpdateTimes
from istd.losses import SEGMENTATION_LOSSES
from istd.methods.base import METHODS, Context, Method, Parts
from istd.methods.evolving import Evolving, evolving_parts
from istd.objectives import Segmentation
from istd.schema import OneOf


@dataclass(frozen=True)
class LESPS(Evolving):
    """Settings of LESPS."""

    loss: Annotated[str, OneOf(SEGMENTATION_LOSSES)] = "soft-focal"
    labels: StartMasks = field(default_factory=lambda: StartMasks(rule="points"))
    updates: UpdateTimes = field(default_factory=lambda: UpdateTimes(start=0.125, until=1.0, every=5))
    evolution: LabelEvolution = field(
        default_factory=lambda: LabelEvolution(
            rule="lesps", stored="uint8", anchors="ones", relative=False, cap=math.inf, decay=1.0
        )
    )


def build(context: Context, settings: LESPS) -> Parts:
    """A student on soft labels that follow it."""
    labels, callbacks = evolving_parts(context, settings)
    return Parts(context.student, Segmentation(settings.loss), labels, labels.values, callbacks=callbacks)


METHODS.register(
    "lesps",
    Method(
        "LESPS: from the points alone, soft labels grow where the network responds",
        LESPS,
        build,
        __doc__,
        fixed=("loss", "labels", "updates", "evolution"),
    ),
)
