"""What a run reports: the record in `metrics.json`."""

from typing import Any, TypedDict

Block = dict[str, float]
"""IoU, nIoU, Pd and Fa of some predictions."""


class LearnedWeights(TypedDict):
    """What learned weights of images say; see `istd.runs.evaluation.learned_weights`."""

    smallest: float
    largest: float
    mask_quality: float | None


class PseudoMaskScores(TypedDict):
    """The labels of training and validation images against the truth, before and after; None without one."""

    initial: Block | None
    final: Block | None


class Metrics(TypedDict, total=False):
    """The results of one run, as `metrics.json` holds them; see docs/runs.md."""

    dataset: str
    provenance: list[dict[str, Any]]
    sensor: dict[str, Any]
    split: str
    n_images: int
    n_targets: int
    method: str
    student: Block | None
    student_by_kind: dict[str, Block] | None
    student_by_set: dict[str, Block | None] | None
    teacher: Block | None
    pseudo_masks: PseudoMaskScores
    learned_weights: LearnedWeights | None
    selected_epoch: int
    selected_on: str
    train_labels: str
    validation_labels: str
    leaks_mask_area: bool
    acted: dict[str, int]
    notes: list[str]
    stability: dict[str, float]
    seed: int
    preset: str
    changes: dict[str, Any]
    student_name: str
    width: float
    student_start: str
    epochs: int
    vfm: str | None
    vfm_pretrained: bool | None
    vfm_source: str | None
    precision: str
    threads: int
    device: str
    seconds: float
    digest: str
