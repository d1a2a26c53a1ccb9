"""What a reader of a run's table must know: parts of the method that never acted, a student that learned nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from istd.batchnorm import layers_with_single_values
from istd.labels import LabelUpdates
from istd.training.experiment import Experiment


def acted(history: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """In how many epochs the labels were updated, and in how many outer steps were made."""
    return {
        "label_updates": sum("label_change" in entry for entry in history),
        "outer_phases": sum("outer_loss" in entry for entry in history),
    }


def notes_on(experiment: Experiment, detected: int | None) -> list[str]:
    """Sentences for the table and `metrics.json`; none where there is nothing to say.

    Args:
        experiment: the finished run.
        detected: pixels above the threshold over all scored images, or None where nothing was scored.
    """
    s, trainer, counts = experiment.settings, experiment.trainer, acted(experiment.trainer.history)
    epochs = s.schedule.epochs
    found: list[str] = []
    updates = next((hook for hook in trainer.callbacks if isinstance(hook, LabelUpdates)), None)
    if updates is not None and not counts["label_updates"]:
        found.append(
            f"LABEL EVOLUTION NEVER ACTED: updates are due in epochs {updates.schedule.first} to "
            f"{updates.schedule.last}, the run has {epochs}. Train longer, or lower updates.start."
        )
    outer = experiment.parts.outer
    if outer is not None and not counts["outer_phases"]:
        found.append(
            f"NO OUTER STEP WAS MADE: they are due every {outer.every} epochs, the run has {epochs}. Train longer, or "
            "lower outer.every."
        )
    singles = layers_with_single_values(experiment.parts.network)
    if singles:
        found.append(
            f"{singles} BatchNorm layers met a single value per channel in training (batch "
            f"{s.optimisation.batch_size}, crop {s.data.crop}) and used their running statistics there; larger batches "
            "or crops train better."
        )
    if detected == 0:
        loader: Any = trainer.inner_batches
        steps = epochs * len(loader)
        found.append(
            f"THE STUDENT FINDS NOTHING: no pixel of a scored image is above 1/2 after {steps} optimizer steps "
            f"({epochs} epochs), which start at a probability of 1/100 everywhere. Train longer."
        )
    return found
