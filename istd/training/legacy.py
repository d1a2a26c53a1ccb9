"""Configurations of earlier releases, which were flat: their names, and settings made of them."""

from collections.abc import Mapping
from typing import Any

from istd.methods import METHODS
from istd.schema import settings_of, with_infinities
from istd.settings import Settings
from istd.training.presets import PRESETS, configure

RENAMED = {
    "epochs": "schedule.epochs",
    "evaluate_every": "schedule.evaluate_every",
    "select_from": "schedule.select_from",
    "select_on": "schedule.select_on",
    "batch_size": "optimisation.batch_size",
    "lr": "optimisation.lr",
    "weight_decay": "optimisation.weight_decay",
    "cosine": "optimisation.cosine",
    "precision": "optimisation.precision",
    "averaging": "optimisation.ema_decay",
    "crop": "data.crop",
    "on_target": "data.on_target",
    "scale": "data.scale",
    "gain": "data.gain",
    "noise": "data.noise",
    "normalise_per_image": "data.normalise_per_image",
    "channels": "data.channels",
    "initial": "labels.rule",
    "leaks_mask_area": "labels.leaks_mask_area",
    "crf": "labels.crf",
    "train_labels": "labels.train",
    "validation_labels": "labels.validation",
    "evolve_from": "updates.start",
    "evolve_until": "updates.until",
    "evolve_every": "updates.every",
    "anchors": "evolution.anchors",
    "evolve_rule": "evolution.rule",
    "evolve_stored": "evolution.stored",
    "evolve_decay": "evolution.decay",
    "evolve_relative": "evolution.relative",
    "evolve_cap": "evolution.cap",
    "alarms": "admission.max_false_components",
    "vfm": "vfm.name",
    "vfm_weights": "vfm.weights",
    "vfm_random": "vfm.random",
    "vfm_view": "vfm.view",
    "vfm_size": "vfm.size",
    "vfm_tokens": "vfm.tokens",
    "scam_strength": "scam.strength",
    "scam_fusion": "scam.fusion",
    "scam_pooling": "scam.pooling",
    "scam_stages": "scam.stages",
    "scam_injection": "scam.injection",
    "scam_start": "scam.start",
    "scam_gate": "scam.gate_weight",
    "student_loss": "teaching.student_loss_weight",
    "teacher_share": "teaching.teacher_share",
    "inner_kd": "teaching.distillation_weight",
    "share_batch_norm": "teaching.share_batch_norm",
    "weighted_outer": "teaching.weighted_outer",
    "variant": "outer.hypergradient",
    "bilevel_every": "outer.every",
    "bilevel_steps": "outer.steps",
    "outer_lr": "outer.lr",
    "outer_labels": "outer.labels",
    "shared_lr": "outer.student_lr",
    "labels_lr": "diffusion_lr",
    "clusters": "clusters.count",
    "descriptors": "clusters.descriptors",
    "transductive": "clusters.transductive",
    "cluster_sharing": "clusters.sharing",
}
"""Old names and new paths; names that are not here stayed."""

VARIANTS = {"implicit": "one-step-unrolled", "gauss-newton": "rank-one", "published": "rank-one-published"}


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether values come from an earlier release: no path has a dot, and some old name is among them."""
    return not any("." in name for name in values) and any(name in RENAMED for name in values)


def translated(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Values under today's paths; settings that the method does not have did nothing then, and are left out."""
    known = settings_of(METHODS[method].settings)
    found = {}
    for name, value in values.items():
        path = RENAMED.get(name, name)
        if path == "outer.hypergradient":
            value = _hypergradient(value, method)
        if path == "teaching.share_batch_norm" and method == "fdep":
            path = "share_batch_norm"
        if path in known or name not in RENAMED:
            found[path] = value
    return found


def from_flat(preset: str, method: str, **values: Any) -> Settings:
    """The settings that an earlier release's `configure` gave for these fields of its `Config`."""
    return configure(preset, method, translated(values, method))


def _hypergradient(variant: Any, method: str) -> Any:
    if variant == "published" and method == "diffuse-to-detect":
        return "output-alignment"
    return VARIANTS.get(variant, variant)


def settings_of_run(stored: Mapping[str, Any]) -> Settings:
    """The settings of a finished run from its `config.json` or checkpoint, of this release or an earlier one.

    Settings that the run did not have yet take their defaults; what no release knows is left out.
    """
    method, preset = stored.get("method", ""), stored.get("preset", "paper")
    values = {k: v for k, v in stored.items() if k not in ("method", "preset")}
    if is_flat(values):
        values = translated(values, method)
    kind = METHODS[method].settings
    known = {k: v for k, v in with_infinities(kind, values).items() if k in settings_of(kind)}
    return configure(preset if preset in PRESETS else "paper", method, known)
