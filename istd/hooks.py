"""What happens around the steps of a training run: weight averaging, label updates, and choosing a checkpoint."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from istd.labels import DiffusedMasks, HardSampleAdmission, LabelEvolution, LearnedLabels, PseudoMasks

Predictor = Callable[[int], NDArray[np.float32]]
"""Probabilities `(H, W)` of sample i."""


class Averaging:
    """Exponential moving average of a module's parameters and buffers, updated after every inner step.

    The decay grows as `min(decay, (1 + n) / (10 + n))` with the number of updates n, so that the random start is
    forgotten quickly (Polyak averaging with the warm-up that is usual for it).

    Args:
        module: what to average.
        decay: final decay; 0 keeps a plain copy.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = AveragedModel(module, multi_avg_fn=self._average, use_buffers=True)
        self._updates = 0

    @property
    def module(self) -> Any:
        """The averaged copy, in eval mode."""
        return self._model.module.eval()

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        keep = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), 1 - keep)
            else:
                old.copy_(new)

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Move the average towards the current weights."""
        self._updates += 1
        self._model.update_parameters(trainer.inner)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates."""
        return {"model": self._model.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._model.load_state_dict(state["model"])
        self._updates = state["updates"]


class SharedRate:
    """Keep the outer step on shared weights at a fraction of the inner learning rate.

    A constant rate would, at the end of a decaying schedule, undo with a few outer steps what the small inner ones
    settle.

    Args:
        fraction: of the current inner rate.
        group: which parameter group of the outer optimizer holds the shared weights.
    """

    def __init__(self, fraction: float, group: int) -> None:
        self.fraction, self.group = fraction, group

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Follow the inner rate."""
        rate = self.fraction * trainer.inner_optimizer.param_groups[0]["lr"]
        trainer.outer_optimizer.param_groups[self.group]["lr"] = rate


class LabelUpdates:
    """Every few epochs, let pseudo-masks follow predictions and admit hard samples.

    Args:
        labels: the pseudo-masks to update.
        predict: the network whose predictions they follow.
        evolution: rule for samples that take part already.
        admission: rule for samples that wait.
        start: first epoch with an update.
        every: period in epochs.
        stop: last epoch with an update.
        admit_until: last epoch with admissions, whose tolerance reaches 1 there; None takes `stop`.
    """

    def __init__(
        self,
        labels: PseudoMasks,
        predict: Predictor,
        evolution: LabelEvolution,
        admission: HardSampleAdmission,
        start: int,
        every: int,
        stop: int,
        admit_until: int | None = None,
    ) -> None:
        self.labels, self.predict, self.evolution, self.admission = labels, predict, evolution, admission
        self.start, self.every, self.stop = start, every, stop
        self.admit_until = stop if admit_until is None else admit_until

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Update where due; adds `label_change`, the share of foreground that changed, and `waiting`."""
        if not self.start <= epoch <= self.stop or (epoch - self.start) % self.every:
            return
        progress = (epoch - self.start) / max(self.admit_until - self.start, 1)
        before = _foreground(self.labels)
        for i in before:
            prediction, points = self.predict(i), self.labels.points[i]
            if self.labels.admitted[i]:
                self.labels.soft[i] = self.evolution(self.labels.soft[i], prediction, points)
            elif epoch <= self.admit_until:
                accepted = self.admission(prediction, points, progress)
                if accepted is not None:
                    self.labels.soft[i], self.labels.admitted[i] = accepted, True
        metrics["label_change"] = _turnover(self.labels, before)
        metrics["waiting"] = float((~self.labels.admitted).sum())


def _foreground(labels: PseudoMasks) -> dict[int, NDArray[np.bool_]]:
    """The masks of all samples that an update may change, by their index."""
    return {i: labels.hard(i) for i in np.flatnonzero(~labels.fixed).tolist()}


def _turnover(labels: PseudoMasks, before: dict[int, NDArray[np.bool_]]) -> float:
    """The share of earlier foreground that has changed since."""
    changed = sum(int((mask ^ labels.hard(i)).sum()) for i, mask in before.items())
    return changed / max(sum(int(mask.sum()) for mask in before.values()), 1)


class Redrawing:
    """After every outer phase, draw the labels anew with the numbers it has learned.

    Args:
        masks: the labels of the run.
        labels: the module that holds the numbers.
    """

    def __init__(self, masks: DiffusedMasks, labels: LearnedLabels) -> None:
        self.masks, self.labels = masks, labels

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Redraw where due; adds `label_change`, the share of foreground that changed, and the numbers."""
        if "outer_loss" not in metrics:
            return
        before = _foreground(self.masks)
        self.masks.redraw()
        self.labels.settle()
        metrics["label_change"] = _turnover(self.masks, before)
        metrics.update(self.labels.diffusion.readable())


class Selection:
    """Every few epochs, score the averaged network on validation and remember the best.

    Args:
        averaging: whose weights are scored and remembered.
        score: validation metrics; `"score"` is what the choice maximises.
        every: period in epochs; the last epoch is always scored.
        start: first epoch to score.
    """

    def __init__(self, averaging: Averaging, score: Callable[[], dict[str, float]], every: int, start: int = 1) -> None:
        self.averaging, self.score, self.every, self.start = averaging, score, every, start
        self.best: dict[str, Any] = {}

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Score where due."""
        last = epoch == trainer.total_epochs
        if not last and (epoch < self.start or epoch % self.every):
            return
        found = self.score()
        metrics.update({f"val_{k}": v for k, v in found.items()})
        if not self.best or found["score"] >= self.best["score"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.averaging.module.state_dict().items()}
            self.best = {"epoch": epoch, "score": found["score"], "weights": weights}

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.best = state["best"]
