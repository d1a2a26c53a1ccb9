"""One run from start to end: train, choose on validation, read the test split once, write the results."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bilevel.checkpoint import load_checkpoint
from bilevel.events import StopBetweenSteps
from istd.data.dataset import Dataset
from istd.inference.export import load_student, save_student
from istd.runs.evaluation import evaluate
from istd.runs.folder import RunFolder
from istd.runs.holding import HeldFolder
from istd.runs.identity import data_identity, run_identity
from istd.runs.metrics import Metrics
from istd.runs.summary import summary_table, write_report
from istd.schema import settings_of
from istd.settings import Settings
from istd.training.experiment import Experiment
from istd.training.legacy import RENAMED, is_flat, settings_of_run
from istd.training.presets import departures

log = logging.getLogger("istd")


def run(
    settings: Settings,
    dataset: Dataset,
    out: Path,
    device: torch.device | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    overwrite: bool = False,
    flags: Mapping[str, Any] | None = None,
) -> Metrics:
    """Train with some settings and write the results; returns what `metrics.json` holds.

    The student is saved as soon as it is trained, before anything is scored.

    Args:
        settings: of the run.
        dataset: its data.
        out: its folder; made if it does not exist (`istd.runs.folder.RunFolder` says what it holds).
        device: where to train.
        resume: continue from the checkpoint in `out`, exactly; with more epochs where the schedule permits it.
        progress: show progress bars.
        callbacks: further callbacks of the trainer.
        overwrite: replace the run in `out`, which is kept until this one has finished an epoch.
        flags: plain data that a later `istd train --resume` takes from the folder.

    Raises:
        FileExistsError: if the folder holds a run and neither `resume` nor `overwrite` was given.
        FileInUseError: if another process is at work in it.
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the run to resume had other settings, other data or threads; the first difference is named. Also
            if it is scored against a flawed mask: the message says where the student lies.
        TrainingDiverged: if a loss or a parameter is not finite.
    """
    started = time.monotonic()
    identity = run_identity(settings, dataset)
    departures(settings)  # an unknown preset shows now, not after training
    folder = RunFolder(out)
    with HeldFolder(folder.out, resume, overwrite) as held, folder.logging():
        experiment = Experiment(
            settings,
            dataset,
            device or torch.device("cpu"),
            folder.checkpoint,
            progress,
            callbacks=(held, EpochLog(), *callbacks, StopBetweenSteps()),
            identity=identity,
        )
        clock = Clock(started)
        experiment.trainer.track("clock", clock)
        if resume and folder.checkpoint.is_file():
            continue_training(experiment, load_checkpoint(folder.checkpoint))
            log.info("resumed after epoch %d of %d", experiment.trainer.epoch, settings.schedule.epochs)
        folder.begin(settings, identity, flags or {})
        experiment.fit()
        experiment.load_best()
        _save_student(experiment, folder.student)
        held.settle()
        predictor = load_student(folder.student, experiment.device)
        try:
            found = evaluate(experiment, predictor)
        except ValueError as error:
            raise ValueError(f"{error} Training is done, and its student is saved: {folder.student}.") from error
        found["seconds"] = round(clock.elapsed(), 1)
        metrics = folder.write_metrics(found)
        write_report(experiment, metrics, predictor, folder.report)
        log.info("\n%s", summary_table(metrics))
    return metrics


def _save_student(experiment: Experiment, path: Path) -> None:
    s, dataset = experiment.settings, experiment.dataset
    facts = {"method": s.method, "seed": s.seed, "dataset": dataset.name, "preset": s.preset}
    student = experiment.ema.module.student
    save_student(path, student, s.student, s.width, experiment.normalisation, dataset.sensor, **facts)


def continue_training(experiment: Experiment, state: dict[str, Any]) -> None:
    """Load a checkpoint's state, also that of a run that was planned for fewer epochs, where its schedule permits it.

    Raises:
        ValueError: if the state belongs to another run, or its schedule has come to its end.
    """
    settings, key = experiment.settings, "schedule.epochs"
    stored = dict(state.get("config", {}))
    state = {**state, "config": _today(stored, settings)}
    planned, epochs = state["config"].get(key), settings.schedule.epochs
    more = isinstance(planned, int) and epochs > planned
    if more:
        ended = []
        if settings.optimisation.cosine:
            ended.append("its learning rate has followed a cosine (--no-cosine keeps it)")
        if "updates.start" in settings.flat():
            ended.append(f"the labels of {settings.method} evolve during a share of the epochs")
        if ended:
            raise ValueError(
                f"This run was planned for {planned} epochs and cannot be given {epochs}: {', and '.join(ended)}, so a "
                f"run of {epochs} is another run from its first epoch on. Train it afresh, in another --out."
            )
        state["config"][key] = epochs
    experiment.trainer.load_state_dict(state)
    if more and experiment.best.best and experiment.best.best["epoch"] < experiment.best.start:
        experiment.best.best = {}  # of the longer run, that epoch is no candidate


def load_run(folder: Path | str, dataset: Dataset, device: torch.device | None = None) -> Experiment:
    """A run as its checkpoint left it: networks, labels, learned weights and history, ready for a closer look.

    The averaged networks hold the last weights; `experiment.load_best()` puts the chosen ones in. Settings that the
    run did not have yet take their defaults.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if the run was trained on other data.
    """
    path = RunFolder(folder).checkpoint
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint.pt; give the folder of a run (`--out` of `istd train`).")
    state = load_checkpoint(path)
    settings = settings_of_run(state["config"])
    data = data_identity(dataset)
    experiment = Experiment(settings, dataset, device or torch.device("cpu"), progress=False, identity=data)
    experiment.trainer.track("clock", Clock(time.monotonic()))
    own, stored = experiment.trainer.config, _today(state["config"], settings)
    # Settings that the run did not have yet, and threads, which matter to training alone, are taken as they are.
    experiment.trainer.load_state_dict({**state, "config": own | {k: v for k, v in stored.items() if k in own}})
    return experiment


def _today(stored: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A checkpoint's record of settings and identity under today's names."""
    if not is_flat(stored):
        return dict(stored)
    known = settings_of(type(settings))
    identity = {k: v for k, v in stored.items() if k not in RENAMED and k not in known}
    return settings_of_run({k: v for k, v in stored.items() if k not in identity}).flat() | identity


class Clock:
    """Wall time of a run, summed over its resumed parts."""

    def __init__(self, started: float) -> None:
        self.started, self.before = started, 0.0

    def elapsed(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"elapsed": self.elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.before = float(state["elapsed"])


class EpochLog:
    """Writes every epoch's numbers to the log."""

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """One line."""
        log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
