"""Presets: what a budget changes in the defaults of every method, and the settings that follow."""

from collections.abc import Mapping
from typing import Any

from bilevel.registry import Registry
from istd.methods import METHODS
from istd.schema import changed, flat, path_of, settings_of
from istd.settings import Settings

DEFAULT_METHOD = "semantic-priors"

PRESETS: Registry[Mapping[str, Any]] = Registry("preset")
PRESETS.register("paper", {})
PRESETS.register(
    "cpu",
    {
        "width": 0.5,
        "schedule.epochs": 140,
        "optimisation.batch_size": 8,
        "optimisation.lr": 2e-3,
        "optimisation.precision": "bfloat16",
        "optimisation.ema_decay": 0.996,
        "data.crop": 128,
        "data.gain": 1.6,
        "data.noise": 0.01,
        "data.on_target": 0.85,
        # Short schedules: a teacher that pulls on the shared weights as hard as the student slows the student down.
        "teaching.student_loss_weight": 8.0,
        "teaching.teacher_share": 0.5,
        "updates.start": 0.4,
        "updates.every": 28,
        "vfm.size": 128,
        "outer.every": 28,
    },
)
PRESETS.register(
    "smoke",
    {
        "width": 0.5,
        "schedule.epochs": 48,
        "schedule.evaluate_every": 6,
        "optimisation.batch_size": 8,
        "optimisation.lr": 4e-3,
        "optimisation.ema_decay": 0.95,
        "data.crop": 64,
        "data.scale": 1.25,
        "data.gain": 1.3,
        "teaching.teacher_share": 0.5,
        "updates.start": 0.5,
        "updates.every": 6,
        "vfm.name": "vit_tiny_patch16_224",
        "vfm.size": 64,
        "vfm.random": True,
        "outer.every": 12,
    },
)

PERIODS = ("schedule.evaluate_every", "updates.every", "outer.every")
"""Settings that count epochs, and so belong to a number of them."""

NAMED = {"method", "preset", "seed", "student", "width", "vfm.name", "vfm.weights", "vfm.random"}
"""What every result names anyway."""


def configure(
    preset: str, method: str | None = None, changes: Mapping[str, Any] | None = None, **more: Any
) -> Settings:
    """The settings of a method: its own, what the preset changes in them, and what the caller changes.

    A preset leaves alone what the method's source states in full (`Method.fixed`). In another number of epochs than
    the preset's, periods that are not given themselves shrink or grow with it: a method whose period outlasted the run
    would never act.

    Args:
        preset: a key of `PRESETS`.
        method: a key of `METHODS`; None takes semantic-priors.
        changes: settings by path, or by last name where that is enough.
        **more: likewise.

    Raises:
        ValueError: for an unknown preset, method or setting, or an impossible value.

    Example:
        `configure("cpu", "pal", {"updates.every": 7}, epochs=20)`
    """
    usual = usual_settings(preset, method)
    given = {path_of(type(usual), k, _where(usual)): v for k, v in {**(changes or {}), **more}.items()}
    if "method" in given:
        raise ValueError("`method` is chosen by the argument of that name: other methods have other settings.")
    epochs = "schedule.epochs"
    if epochs in given:
        usual = with_epochs(usual, changed(usual, {epochs: given[epochs]}).schedule.epochs)
    return changed(usual, given, _where(usual))


def usual_settings(preset: str, method: str | None = None) -> Settings:
    """The settings of a method in a preset.

    Raises:
        ValueError: for an unknown preset or method.
    """
    name = DEFAULT_METHOD if method is None else method
    kind, known = METHODS[name], settings_of(METHODS[name].settings)
    values = {k: v for k, v in PRESETS[preset].items() if k in known and not _is_fixed(k, kind.fixed)}
    return changed(kind.settings(method=name, preset=preset), values)


def applicable(method: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those changes that name a setting of the method, by its path: what rows of a comparison have in common."""
    known = settings_of(METHODS[method].settings)
    return {k: v for k, v in changes.items() if k in known}


def alike(settings: Settings, method: str) -> Settings:
    """Another method in the same budget: what the settings change in their preset, as far as the method has it."""
    values = settings.flat()
    changes = departures(settings) | {k: values[k] for k in NAMED if k in values and k not in ("method", "preset")}
    return configure(settings.preset, method, applicable(method, changes))


def with_epochs(settings: Settings, epochs: int) -> Settings:
    """The same schedule in another number of epochs: periods, which count epochs, shrink (or grow) with it."""
    return settings.changed(**{"schedule.epochs": epochs, **scaled_periods(settings.flat(), epochs)})


def scaled_periods(values: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The periods of a schedule with its own number of epochs, for another number of them; each at least 1."""
    share = epochs / values["schedule.epochs"]
    return {p: max(round(share * values[p]), 1) for p in PERIODS if p in values}


def departures(settings: Settings) -> dict[str, Any]:
    """What settings change in their preset and method, by path; without seed, network and VFM, which results name."""
    base = usual_settings(settings.preset, settings.method)
    usual = flat(with_epochs(base, settings.schedule.epochs)) | {"schedule.epochs": base.schedule.epochs}
    return {k: v for k, v in settings.flat().items() if k not in NAMED and v != usual[k]}


def _is_fixed(path: str, fixed: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in fixed)


def _where(settings: Settings) -> str:
    return f"the method {settings.method!r}"
