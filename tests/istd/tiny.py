"""Settings of runs that take seconds."""

from istd.cli.flags import settings_from
from istd.cli.main import parse
from istd.data.dataset import Sample
from istd.methods import METHODS
from istd.schema import path_of
from istd.training.presets import applicable, configure

SMALL = {
    "student": "mlcl",
    "width": 0.25,
    "data.crop": 32,
    "optimisation.batch_size": 4,
    "schedule.epochs": 4,
    "schedule.evaluate_every": 2,
    "updates.every": 1,
    "outer.every": 2,
    "outer.steps": 1,
    "vfm.size": 32,
}


def settings(preset, method="semantic-priors", **changes):
    """`configure` with paths as keywords, `updates__every=1`; components that the method lacks are left out."""
    kind, given = METHODS[method].settings, {}
    for name, value in changes.items():
        path = name.replace("__", ".") if "__" in name else path_of(kind, name)
        given[path] = value
    return configure(preset, method, applicable(method, given))


def tiny(method="semantic-priors", **changes):
    """The smoke preset, smaller, and what else changes."""
    kind = METHODS[method].settings
    given = {path_of(kind, name.replace("__", ".")): value for name, value in changes.items()}
    epochs = {"schedule.epochs": given.get("schedule.epochs", SMALL["schedule.epochs"])}
    return configure("smoke", method, applicable(method, SMALL) | given | epochs)


def mask_of(rule, image, points):
    """The start mask that a rule draws on an image with these points."""
    return rule(Sample("drawn", image, points))


def of_command(*words, command="train"):
    """The settings that a command line describes."""
    args = parse([command, *words])
    return settings_from(args, args.settings)
