"""The choice of a checkpoint: on validation, by a score of what point supervision has."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bilevel import Callback
from istd.metrics import evaluate_masks
from istd.training.averaging import EMA

if TYPE_CHECKING:
    from istd.training.experiment import Experiment


class BestCheckpoint(Callback):
    """Every few epochs, score the averaged network on validation and remember the best.

    Args:
        averaging: whose weights are scored and remembered.
        score: validation metrics; `"score"` is what the choice maximises.
        every: period in epochs; the last epoch is always scored.
        start: first epoch to score.
    """

    name = "Selection"  # the key of its state in checkpoints of every release

    def __init__(self, averaging: EMA, score: Callable[[], dict[str, float]], every: int, start: int = 1) -> None:
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


def validation_score(experiment: "Experiment", split: str) -> Callable[[], dict[str, float]]:
    """What a checkpoint is chosen by.

    On "val", what point supervision has: agreement of the student with the start masks of the validation images; the
    start masks, because they stay: evolved ones follow the very network that is scored. On "test", IoU with the truth,
    as the sources choose.

    Args:
        experiment: whose averaged student is scored.
        split: "val" or "test".
    """

    def on_validation() -> dict[str, float]:
        samples, start = experiment.context.samples, experiment.parts.labels.now.start
        places = experiment.context.validation.tolist()
        found = evaluate_masks([(experiment.predict_student(samples[i].image) > 0.5, start[i]) for i in places])
        return {"score": (found["IoU"] + found["nIoU"]) / 2} | found

    def on_test() -> dict[str, float]:
        pairs = []
        for sample in experiment.dataset.test:
            truth = sample.truth()
            assert truth is not None
            pairs.append((experiment.predict_student(sample.image) > 0.5, truth))
        found = evaluate_masks(pairs)
        return {"score": found["IoU"]} | found

    return on_test if split == "test" else on_validation
