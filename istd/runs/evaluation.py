"""The scores of a finished run: student and teacher on the test split, pseudo-masks and learned weights."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from istd.data.dataset import Sample, positions_by_set
from istd.inference.predict import StudentPredictor
from istd.metrics import evaluate_by_characteristic, evaluate_masks
from istd.runs.metrics import Block, LearnedWeights, Metrics
from istd.runs.notes import acted, notes_on
from istd.training.experiment import Experiment
from istd.training.presets import departures


def evaluate(experiment: Experiment, predictor: StudentPredictor) -> Metrics:
    """Score the saved student on the test split, and the pseudo-masks against the truth where there is one.

    The student is scored as `istd evaluate` scores it, from its file: a table speaks of what is deployed.
    """
    s, dataset, best = experiment.settings, experiment.dataset, experiment.best.best
    parts, samples, vision = experiment.parts, experiment.context.samples, experiment.parts.vision
    scored = dataset.test if dataset.has_truth else ()
    student = [predictor(x.image) for x in scored]
    teacher = None
    if scored and vision is not None:
        tokens = vision.wholes([x.image for x in scored])
        teacher = [experiment.predict_teacher(x.image, tokens(i)) for i, x in enumerate(scored)]
    labels = parts.labels.now
    return {
        "dataset": dataset.name,
        "provenance": dataset.provenance,
        "sensor": dataset.sensor.to_dict(),
        "split": f"train {len(dataset.train)} / val {len(dataset.val)} / test {len(dataset.test)}",
        "n_images": len(dataset.test),
        "n_targets": sum(len(x.points) for x in dataset.test),
        "method": s.method,
        "student": _block(scored, student),
        "student_by_kind": _kinds(scored, student),
        "student_by_set": _sets(scored, student),
        "teacher": None if teacher is None else _block(scored, teacher),
        "pseudo_masks": {
            "initial": _mask_block(samples, labels.start),
            "final": _mask_block(samples, [labels.hard(i) for i in range(len(labels))]),
        },
        "learned_weights": learned_weights(experiment),
        "selected_epoch": best["epoch"],
        "selected_on": s.schedule.select_on,
        "train_labels": s.labels.train,
        "validation_labels": s.labels.validation,
        "leaks_mask_area": s.labels.leaks_mask_area,
        "acted": acted(experiment.trainer.history),
        "notes": notes_on(experiment, sum(int((p > 0.5).sum()) for p in student) if scored else None),
        "stability": _stability(experiment.trainer.history),
        "seed": s.seed,
        "preset": s.preset,
        "changes": departures(s),
        "student_name": s.student,
        "width": s.width,
        "student_start": experiment.student_start,
        "epochs": s.schedule.epochs,
        "vfm": None if vision is None else vision.model.name,
        "vfm_source": None if vision is None else vision.model.source,
        "vfm_pretrained": None if vision is None else vision.model.pretrained,
        "precision": experiment.precision,
        "threads": torch.get_num_threads(),
        "device": str(experiment.device),
    }


def _block(samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]) -> Block | None:
    return _mask_block(samples, [p > 0.5 for p in predictions])


def _mask_block(samples: Sequence[Sample], masks: Sequence[NDArray[np.bool_]]) -> Block | None:
    pairs = []
    for sample, mask in zip(samples, masks, strict=True):
        truth = sample.truth()
        if truth is None:
            return None
        pairs.append((mask, truth))
    return evaluate_masks(pairs) if pairs else None


def _sets(samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]) -> dict[str, Block | None] | None:
    """Scores of each set by itself, where several were joined."""
    parts = positions_by_set(samples)
    if len(parts) < 2:
        return None
    return {name: _block([samples[i] for i in at], [predictions[i] for i in at]) for name, at in parts.items()}


def _kinds(samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]) -> dict[str, Block] | None:
    triples = []
    for sample, p in zip(samples, predictions, strict=True):
        truth = sample.truth()
        assert truth is not None
        triples.append((p > 0.5, truth, sample.image))
    return evaluate_by_characteristic(triples) or None


def learned_weights(experiment: Experiment) -> LearnedWeights | None:
    """What the weights of the training images say, None for a method that learns none.

    Weights are relative to their mean. `mask_quality` is Spearman's rank correlation between an image's weight and the
    IoU of its final pseudo-mask, over training images with targets: weights that find good labels have a positive one.
    It is None without true masks, or if all weights are equal.
    """
    from scipy.stats import spearmanr

    if not any(p.requires_grad for p in experiment.parts.weights.parameters()):
        return None
    images = torch.from_numpy(experiment.context.training).to(experiment.device)
    with torch.no_grad():
        weights = experiment.parts.weights(images).double().cpu().numpy()
    weights = weights / weights.mean()
    pairs = []
    for i, weight in zip(experiment.context.training.tolist(), weights, strict=True):
        truth = experiment.context.samples[i].truth()
        if truth is not None and truth.any():
            pairs.append((weight, evaluate_masks([(experiment.parts.labels.now.hard(i), truth)])["IoU"]))
    constant = len(pairs) < 2 or bool((np.ptp(pairs, axis=0) < 1e-9).any())
    return {
        "smallest": float(weights.min()),
        "largest": float(weights.max()),
        "mask_quality": None if constant else float(spearmanr(pairs).statistic),
    }


def _stability(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """How much validation IoU and labels move, from one look to the next.

    `late_change` is the mean |difference| of validation IoU between evaluations in their second half, `last_change` the
    last of them, and `label_change` the mean share of pseudo-mask foreground that an update turns over.
    """
    values = np.array([entry["val_IoU"] for entry in history if "val_IoU" in entry])
    late = np.abs(np.diff(values[len(values) // 2 :])) if len(values) > 2 else np.zeros(1)
    updates = [entry["label_change"] for entry in history if "label_change" in entry]
    return {
        "late_change": float(late.mean()),
        "last_change": float(late[-1]),
        "label_change": float(np.mean(updates)) if updates else 0.0,
    }
