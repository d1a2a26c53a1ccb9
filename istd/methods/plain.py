"""The two ends that every method lies between: pseudo-masks kept as they start, and true masks.

`plain` trains on the start masks and does nothing else: no teacher, no evolution, no weights, no outer problem. It is
the row that every cleverer method must beat in the same budget.

`full` trains on true masks: what points give away. It is a ceiling, not a competitor, and its row says so.
Validation, too, is by true masks.
"""

from dataclasses import dataclass, field

from istd.labels import StartMasks
from istd.methods.base import METHODS, Context, Method, Parts
from istd.objectives import Segmentation
from istd.settings import Settings


@dataclass(frozen=True)
class Full(Settings):
    """Settings of training on true masks."""

    labels: StartMasks = field(default_factory=lambda: StartMasks(train="true", validation="true"))


def build(context: Context, settings: Settings) -> Parts:
    """A student on its start masks."""
    labels = settings.labels.draw(context.samples, context.training, context.validation, admit_all=True)
    return Parts(context.student, Segmentation(settings.loss), labels, labels.hard)


METHODS.register(
    "plain", Method("the start masks, kept fixed: no teacher, no evolution, no weights", Settings, build, __doc__)
)
METHODS.register("full", Method("true masks: the supervised ceiling", Full, build, __doc__, fixed=("labels",)))
