"""A run's results for the eye: the table that is printed, and the picture."""

from collections.abc import Sequence
from pathlib import Path

from bilevel.reweighting import TableWeights
from istd.inference.predict import StudentPredictor
from istd.runs.metrics import Metrics
from istd.runs.report import Panel, draw_report, evenly, format_table
from istd.training.experiment import Experiment


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
    labels, dataset = experiment.parts.labels.now, experiment.dataset
    training = [(experiment.context.samples[i], labels.start[i], labels.hard(i)) for i in evenly(len(dataset.train), 6)]
    shown = [dataset.test[i] for i in evenly(len(dataset.test), 6)]
    test = [Panel(sample, predictor(sample.image)) for sample in shown]
    weights = experiment.parts.weights
    learned = weights.of_groups().cpu().double().numpy() if isinstance(weights, TableWeights) else None
    block = metrics["student"]
    scores = "" if block is None else f" - test IoU {100 * block['IoU']:.1f} %, Pd {100 * block['Pd']:.1f} %"
    title = f"{metrics['dataset']}: {metrics['method']}, {metrics['student_name']} x{metrics['width']}, {_vfm(metrics)}"
    draw_report(path, title + scores, training, test, experiment.trainer.history, learned)


def _row_name(metrics: Metrics, network: str) -> str:
    if network == "teacher":
        return f"teacher ({_vfm(metrics)})"
    leak = ", knows mask areas" if metrics.get("leaks_mask_area") else ""
    return f"student ({metrics['method']}{leak})"


def _vfm(metrics: Metrics) -> str:
    if metrics["vfm"] is None:
        return "no VFM"
    return metrics["vfm"] if metrics["vfm_pretrained"] else f"{metrics['vfm']}, RANDOM weights"
