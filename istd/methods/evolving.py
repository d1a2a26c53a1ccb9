"""Labels that follow predictions: what LESPS, PAL and semantic-priors share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from istd.labels import HardSampleAdmission, LabelEvolution, Labels, LabelUpdates, UpdateTimes
from istd.labels.updates import Predictor
from istd.methods.base import Context, no_callbacks
from istd.settings import Settings


@dataclass(frozen=True)
class Evolving(Settings):
    """Settings of a method whose labels evolve.

    Attributes:
        updates: when labels are updated.
        evolution: how labels follow predictions.
        admission: when an image whose start was doubtful takes part.
    """

    updates: UpdateTimes = field(default_factory=UpdateTimes)
    evolution: LabelEvolution = field(default_factory=LabelEvolution)
    admission: HardSampleAdmission = field(default_factory=HardSampleAdmission)


def evolving_parts(
    context: Context, settings: Evolving, evolves: bool = True
) -> tuple[Labels, Callable[[Predictor], list[Any]]]:
    """Start masks, of which doubtful ones wait, and the callback that updates and admits; or masks that stay."""
    labels = settings.labels.draw(context.samples, context.training, context.validation, admit_all=not evolves)
    if not evolves:
        return labels, no_callbacks
    schedule = settings.updates.schedule(settings.schedule.epochs)

    def callbacks(predict: Predictor) -> list[Any]:
        return [LabelUpdates(labels, predict, settings.evolution, settings.admission, schedule)]

    return labels, callbacks
