"""When labels follow predictions: callbacks of a training run, and the settings that say when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from bilevel import Callback
from istd.labels.evolution import LabelEvolution
from istd.labels.hard_samples import HardSampleAdmission
from istd.labels.learned import DiffusedLabels, LearnedLabels
from istd.labels.schedule import UpdateSchedule, published_schedule, update_schedule
from istd.labels.store import Labels, PseudoMasks
from istd.schema import Range, check

Predictor = Callable[[int], NDArray[np.float32]]
"""Probabilities `(H, W)` of sample i."""

ADMIT_UNTIL = 0.8  # share of the epochs after which no waiting image is admitted any more (PAL, 2025)


@dataclass(frozen=True)
class UpdateTimes:
    """When labels are updated.

    Attributes:
        start: share of the epochs after which label updates begin (published: 0.2 of 300).
        until: share of the epochs after which labels stay; the releases let them evolve to the end (1).
        every: period of label updates in epochs.
        published: count as PAL's release does: updates at multiples of the period beyond the start, to the end, the
            first a period later than here, with a tolerance of admission that rises from the start on.
    """

    start: Annotated[float, Range(0, 1)] = 0.2
    until: Annotated[float, Range(0, 1)] = 0.8
    every: Annotated[int, Range(1)] = 5
    published: bool = False

    def __post_init__(self) -> None:
        check(self)

    def schedule(self, epochs: int) -> UpdateSchedule:
        """The updates of a run of so many epochs."""
        if self.published:
            return published_schedule(epochs, self.start, self.every, ADMIT_UNTIL)
        return update_schedule(epochs, self.start, self.until, self.every, ADMIT_UNTIL)


class LabelUpdates(Callback):
    """Every few epochs, let pseudo-masks follow predictions and admit hard samples.

    Args:
        labels: the labels to update.
        predict: the network whose predictions they follow.
        evolution: rule for samples that take part already.
        admission: rule for samples that wait.
        schedule: when labels are updated, and until when samples are admitted.
    """

    def __init__(
        self,
        labels: Labels,
        predict: Predictor,
        evolution: LabelEvolution,
        admission: HardSampleAdmission,
        schedule: UpdateSchedule,
    ) -> None:
        self.labels, self.predict, self.evolution, self.admission = labels, predict, evolution, admission
        self.schedule = schedule

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Update where due; adds `label_change`, the share of foreground that changed, and `waiting`."""
        if not self.schedule.due(epoch):
            return
        progress = self.schedule.progress(epoch)
        before = after = self.labels.now
        for i in np.flatnonzero(~before.fixed).tolist():
            prediction, points = self.predict(i), before.points[i]
            if before.admitted[i]:
                after = after.updated(i, self.evolution(before.soft[i], prediction, points))
            elif epoch <= self.schedule.admit_until:
                accepted = self.admission(prediction, points, progress)
                if accepted is not None:
                    after = after.updated(i, accepted)
        self.labels.now = after
        metrics["label_change"] = _turnover(before, after)
        metrics["waiting"] = float((~after.admitted).sum())


def _turnover(before: PseudoMasks, after: PseudoMasks) -> float:
    """The share of earlier foreground that has changed since, over the samples that an update may change."""
    masks = [(before.hard(i), after.hard(i)) for i in np.flatnonzero(~before.fixed).tolist()]
    changed = sum(int((old ^ new).sum()) for old, new in masks)
    return changed / max(sum(int(old.sum()) for old, _ in masks), 1)


class Redrawing(Callback):
    """After every outer phase, draw the labels anew with the numbers it has learned.

    Args:
        masks: the labels of the run.
        labels: the module that holds the numbers.
    """

    def __init__(self, masks: DiffusedLabels, labels: LearnedLabels) -> None:
        self.masks, self.labels = masks, labels

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Redraw where due; adds `label_change`, the share of foreground that changed, and the numbers."""
        if "outer_loss" not in metrics:
            return
        before = self.masks.now
        self.masks.redraw()
        self.labels.settle()
        metrics["label_change"] = _turnover(before, self.masks.now)
        metrics.update(self.labels.diffusion.readable())
