"""One run from start to end: train, choose on validation, read the test split once, write the results.

The folder of a run holds `metrics.json`, `report.png`, `student.safetensors`, `config.json`, `run.json` (its identity
and flags), `log.txt` and `checkpoint.pt`. Every file but the log is written atomically.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel.checkpoint import load_checkpoint
from bilevel.events import StopBetweenSteps
from bilevel.reweighting import TableWeights
from istd.config import Config, departures
from istd.data.layouts import Dataset, Sample, positions_by_set
from istd.experiment import Experiment
from istd.export import load_student, save_student
from istd.folder import RunFolder, write_json
from istd.identity import data_identity, run_identity, sealed
from istd.metrics import evaluate_by_characteristic, evaluate_masks
from istd.notes import acted, notes_on
from istd.predict import StudentPredictor
from istd.report import Panel, draw_report, evenly, format_table

log = logging.getLogger("istd")
Metrics = dict[str, Any]


def run(
    config: Config,
    dataset: Dataset,
    out: Path,
    device: torch.device | None = None,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Any] = (),
    overwrite: bool = False,
    flags: Mapping[str, Any] | None = None,
) -> Metrics:
    """Train one configuration and write its results; returns what `metrics.json` holds.

    The student is saved as soon as it is trained, before anything is scored.

    Args:
        config: the run.
        dataset: its data.
        out: its folder; made if it does not exist.
        device: where to train.
        resume: continue from the checkpoint in `out`, exactly; with more epochs where the schedule permits it.
        progress: show progress bars.
        hooks: further objects with methods of `bilevel.events.Hook`.
        overwrite: replace the run in `out`, which is kept until this one has finished an epoch.
        flags: plain data that a later `istd train --resume` need not be told again.

    Raises:
        FileExistsError: if the folder holds a run and neither `resume` nor `overwrite` was given.
        FileInUseError: if another process is at work in it.
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the run to resume had another configuration, other data or threads; the first difference is
            named. Also if it is scored against a flawed mask: the message says where the student lies.
        TrainingDiverged: if a loss or a parameter is not finite.
    """
    started = time.monotonic()
    identity = run_identity(config, dataset)
    departures(config)  # an unknown preset shows now, not after training
    with RunFolder(out, resume, overwrite) as folder, _logging(out / "log.txt"):
        experiment = Experiment(
            config,
            dataset,
            device or torch.device("cpu"),
            out / "checkpoint.pt",
            progress,
            hooks=(folder, _EpochLog(), *hooks, StopBetweenSteps()),
            identity=identity,
        )
        clock = _Clock(started)
        experiment.trainer.track("clock", clock)
        if resume and (out / "checkpoint.pt").is_file():
            continue_training(experiment, load_checkpoint(out / "checkpoint.pt"))
            log.info("resumed after epoch %d of %d", experiment.trainer.epoch, config.epochs)
        write_json(out / "config.json", config.as_dict())
        write_json(out / "run.json", {"identity": identity, "flags": dict(flags or {})})
        experiment.fit()
        experiment.load_best()
        student = getattr(experiment.averaging.module, "student", experiment.averaging.module)
        facts = {"method": config.method, "seed": config.seed, "dataset": dataset.name, "preset": config.preset}
        path, sensor = out / "student.safetensors", dataset.sensor
        save_student(path, student, config.student, config.width, experiment.normalisation, sensor, **facts)
        folder.settle()
        predictor = load_student(path, experiment.device)
        try:
            metrics = sealed(evaluate(experiment, predictor) | {"seconds": round(clock.elapsed(), 1)})
        except ValueError as error:
            raise ValueError(f"{error} Training is done, and its student is saved: {path}.") from error
        write_json(out / "metrics.json", metrics)
        write_report(experiment, metrics, predictor, out / "report.png")
        log.info("\n%s", summary_table(metrics))
    return metrics


def continue_training(experiment: Experiment, state: dict[str, Any]) -> None:
    """Load a checkpoint's state, also that of a run that was planned for fewer epochs, where its schedule permits it.

    Raises:
        ValueError: if the state belongs to another run, or its schedule has come to its end.
    """
    config, planned = experiment.config, state.get("config", {}).get("epochs")
    more = isinstance(planned, int) and config.epochs > planned
    if more:
        ended = []
        if config.cosine:
            ended.append("its learning rate has followed a cosine (--no-cosine keeps it)")
        if experiment.method.evolves:
            ended.append(f"the labels of {config.method} evolve during a share of the epochs")
        if ended:
            raise ValueError(
                f"This run was planned for {planned} epochs and cannot be given {config.epochs}: "
                f"{', and '.join(ended)}, so a run of {config.epochs} is another run from its first epoch on. Train it "
                "afresh, in another --out."
            )
        state = {**state, "config": {**state["config"], "epochs": config.epochs}}
    experiment.trainer.load_state_dict(state)
    if more and experiment.selection.best and experiment.selection.best["epoch"] < experiment.selection.start:
        experiment.selection.best = {}  # of the longer run, that epoch is no candidate


def load_run(folder: Path | str, dataset: Dataset, device: torch.device | None = None) -> Experiment:
    """A run as its checkpoint stands: networks, labels, learned weights and history, ready for a closer look.

    The averaged networks hold the last weights; `experiment.load_best()` puts the chosen ones in. Configuration fields
    that are younger than the run stand at their defaults.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if the run was trained on other data.
    """
    path = Path(folder) / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint.pt; give the folder of a run (`--out` of `istd train`).")
    state = load_checkpoint(path)
    known = {f.name for f in fields(Config)}
    config = Config(**{name: value for name, value in state["config"].items() if name in known})
    data = data_identity(dataset)
    experiment = Experiment(config, dataset, device or torch.device("cpu"), progress=False, identity=data)
    experiment.trainer.track("clock", _Clock(time.monotonic()))
    own = experiment.trainer.config
    # Fields that are younger than the run, and threads, which matter to training alone, are taken as they are.
    experiment.trainer.load_state_dict(
        {**state, "config": own | {k: v for k, v in state["config"].items() if k in own}}
    )
    return experiment


def evaluate(experiment: Experiment, predictor: StudentPredictor) -> Metrics:
    """Score the saved student on the test split, and the pseudo-masks against the truth where there is one.

    The student is scored as `istd evaluate` scores it, from its file: a table speaks of what is deployed.
    """
    config, dataset, best = experiment.config, experiment.dataset, experiment.selection.best
    scored = dataset.test if dataset.has_truth else ()
    student = [predictor(s.image) for s in scored]
    teacher = None
    tokens = experiment.image_tokens(scored) if scored else None
    if tokens is not None:
        teacher = [experiment.predict_teacher(s.image, t) for s, t in zip(scored, tokens, strict=True)]
    labels = experiment.labels
    return {
        "dataset": dataset.name,
        "provenance": dataset.provenance,
        "sensor": dataset.sensor.to_dict(),
        "split": f"train {len(dataset.train)} / val {len(dataset.val)} / test {len(dataset.test)}",
        "n_images": len(dataset.test),
        "n_targets": sum(len(s.points) for s in dataset.test),
        "method": config.method,
        "student": _block(scored, student),
        "student_by_kind": _kinds(scored, student),
        "student_by_set": _sets(scored, student),
        "teacher": None if teacher is None else _block(scored, teacher),
        "pseudo_masks": {
            "initial": _mask_block(experiment.samples, labels.start),
            "final": _mask_block(experiment.samples, [labels.hard(i) for i in range(len(labels))]),
        },
        "learned_weights": learned_weights(experiment),
        "selected_epoch": best["epoch"],
        "selected_on": config.select_on,
        "train_labels": "true" if experiment.method.truth else config.train_labels,
        "validation_labels": config.validation_labels,
        "leaks_mask_area": config.leaks_mask_area,
        "acted": acted(experiment.trainer.history),
        "notes": notes_on(experiment, sum(int((p > 0.5).sum()) for p in student) if scored else None),
        "stability": _stability(experiment.trainer.history),
        "seed": config.seed,
        "preset": config.preset,
        "changes": departures(config),
        "student_name": config.student,
        "width": config.width,
        "epochs": config.epochs,
        "vfm": experiment.vfm.name if experiment.vfm is not None else None,
        "vfm_pretrained": experiment.vfm.pretrained if experiment.vfm is not None else None,
        "precision": experiment.precision,
        "threads": torch.get_num_threads(),
        "device": str(experiment.device),
    }


def summary_table(metrics: Metrics, beside: Sequence[Metrics] = ()) -> str:
    """The table of one run, with further runs on the same data beside it."""
    rows = {_row_name(metrics, "student"): metrics["student"], _row_name(metrics, "teacher"): metrics["teacher"]}
    for name, block in (metrics.get("student_by_set") or {}).items():
        rows[f"  {name} by itself"] = block
    for other in beside:
        rows[_row_name(other, "student")] = other["student"]
    rows["pseudo-masks, initial (train+val)"] = metrics["pseudo_masks"]["initial"]
    rows["pseudo-masks, final (train+val)"] = metrics["pseudo_masks"]["final"]
    if all(block is None for block in rows.values()):
        return f"{metrics['dataset']}: no true masks, so there is nothing to score; see student.safetensors."
    table = format_table(rows, f"{metrics['dataset']}: {metrics['n_images']} test images")
    learned = metrics["learned_weights"]
    if learned is not None and learned["mask_quality"] is not None:
        table += (
            f"\nlearned weights of images: {learned['smallest']:.2f} to {learned['largest']:.2f}; rank correlation "
            f"with the IoU of their masks: {learned['mask_quality']:.2f}"
        )
    return "\n".join([table, *metrics.get("notes", ())])


def write_report(experiment: Experiment, metrics: Metrics, predictor: StudentPredictor, path: Path) -> None:
    """Draw the run's picture."""
    labels, dataset = experiment.labels, experiment.dataset
    training = [(experiment.samples[i], labels.start[i], labels.hard(i)) for i in evenly(len(dataset.train), 6)]
    shown = [dataset.test[i] for i in evenly(len(dataset.test), 6)]
    test = [Panel(sample, predictor(sample.image)) for sample in shown]
    weights = experiment.weights
    learned = weights.of_groups().cpu().double().numpy() if isinstance(weights, TableWeights) else None
    block = metrics["student"]
    scores = "" if block is None else f" - test IoU {100 * block['IoU']:.1f} %, Pd {100 * block['Pd']:.1f} %"
    title = f"{metrics['dataset']}: {metrics['method']}, {metrics['student_name']} x{metrics['width']}, {_vfm(metrics)}"
    draw_report(path, title + scores, training, test, experiment.trainer.history, learned)


def _row_name(metrics: Metrics, network: str) -> str:
    if network == "teacher":
        return f"teacher ({_vfm(metrics)})"
    leak = ", told mask areas" if metrics.get("leaks_mask_area") else ""
    return f"student ({metrics['method']}{leak})"


def _vfm(metrics: Metrics) -> str:
    if metrics["vfm"] is None:
        return "no VFM"
    return metrics["vfm"] if metrics["vfm_pretrained"] else f"{metrics['vfm']}, RANDOM weights"


def _block(samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]) -> dict[str, float] | None:
    return _mask_block(samples, [p > 0.5 for p in predictions])


def _mask_block(samples: Sequence[Sample], masks: Sequence[NDArray[np.bool_]]) -> dict[str, float] | None:
    pairs = []
    for sample, mask in zip(samples, masks, strict=True):
        truth = sample.truth()
        if truth is None:
            return None
        pairs.append((mask, truth))
    return evaluate_masks(pairs) if pairs else None


def _sets(
    samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]
) -> dict[str, dict[str, float] | None] | None:
    """Scores of each set by itself, where several were joined."""
    parts = positions_by_set(samples)
    if len(parts) < 2:
        return None
    return {name: _block([samples[i] for i in at], [predictions[i] for i in at]) for name, at in parts.items()}


def _kinds(samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]) -> dict[str, dict[str, float]] | None:
    triples = []
    for sample, p in zip(samples, predictions, strict=True):
        truth = sample.truth()
        assert truth is not None
        triples.append((p > 0.5, truth, sample.image))
    return evaluate_by_characteristic(triples) or None


def learned_weights(experiment: Experiment) -> dict[str, float | None] | None:
    """What the weights of the training images say, None for a method that learns none.

    Weights are relative to their mean. `mask_quality` is Spearman's rank correlation between an image's weight and the
    IoU of its final pseudo-mask, over training images with targets: weights that find good labels have a positive one.
    It is None without true masks, or if all weights are equal.
    """
    from scipy.stats import spearmanr

    if not any(p.requires_grad for p in experiment.weights.parameters()):
        return None
    images = torch.from_numpy(experiment.training).to(experiment.device)
    with torch.no_grad():
        weights = experiment.weights(images).double().cpu().numpy()
    weights = weights / weights.mean()
    pairs = []
    for i, weight in zip(experiment.training.tolist(), weights, strict=True):
        truth = experiment.samples[i].truth()
        if truth is not None and truth.any():
            pairs.append((weight, evaluate_masks([(experiment.labels.hard(i), truth)])["IoU"]))
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


class _Clock:
    """Wall time of a run, summed over its resumed parts."""

    def __init__(self, started: float) -> None:
        self.started, self.before = started, 0.0

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = float(state["elapsed"])


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Send the log of this package to a file too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class _EpochLog:
    """Writes every epoch's numbers to the log."""

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
