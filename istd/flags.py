"""Command-line flags of a run's configuration: names, types and help come from the `Config` dataclass itself."""

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from istd.config import CHOICES, PRESETS, RANGES, Config, configure, scaled_periods
from istd.schema import checked, plain_type, read_settings

FILE_CHOICES = {**CHOICES, "preset": PRESETS}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, `--config` and one flag per field of `Config`; flags that are not given stay None."""
    parser.add_argument("--preset", choices=list(PRESETS), help="default: cpu with --data, smoke without")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="JSON with some fields, such as a run's config.json; flags win"
    )
    group = parser.add_argument_group(
        "configuration", "Defaults are those of the preset; the values shown are `paper`'s."
    )
    hints, texts = get_type_hints(Config), descriptions()
    for field in fields(Config):
        if field.name == "preset":
            continue
        flag = "--" + field.name.replace("_", "-")
        text = f"{texts[field.name]} [{field.default}]".replace("%", "%%")
        kind = plain_type(hints[field.name])[0]
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif field.name in CHOICES:
            group.add_argument(flag, choices=list(CHOICES[field.name]), help=text)
        else:
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)


def config_from(args: argparse.Namespace, method: str | None = None) -> Config:
    """The frozen config that preset, method, file and flags describe, each overriding the one before.

    Periods scale with the epochs (`configure`), those of a file with the epochs that the file itself names.

    Args:
        args: parsed flags.
        method: in place of the flags' method, for a comparison in the same budget.

    Raises:
        ValueError: for a file that is no JSON object, an unknown field in it, or an impossible value.
    """
    given = read_config(args.config) if args.config is not None else {}
    preset = args.preset or given.pop("preset", None) or ("cpu" if args.data else "smoke")
    given.pop("preset", None)
    flags = {name: value for name, value in flags_of(args).items() if value is not None}
    if "epochs" in flags and "epochs" in given:
        # What a file says must be possible before anything is computed from it.
        own = configure(preset, given.get("method"), **{k: v for k, v in given.items() if k != "method"})
        given |= scaled_periods({name: getattr(own, name) for name in given}, replace(own, **flags).epochs)
    given |= flags
    if args.vfm_random is None and (args.vfm is not None or args.vfm_weights is not None):
        given["vfm_random"] = False  # naming a model or its weights asks for trained ones
    chosen = method or given.get("method")
    return configure(preset, chosen, **{k: v for k, v in given.items() if k != "method"})


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of fields of `Config`; None where one was not given."""
    return {f.name: getattr(args, f.name) for f in fields(Config) if f.name != "preset"}


def given_flags(args: argparse.Namespace) -> list[str]:
    """The configuration's part of a command line, to be shown with its result."""
    words = [] if args.preset is None else ["--preset", args.preset]
    words += [] if args.config is None else ["--config", str(args.config)]
    for field in fields(Config):
        flag, value = field.name.replace("_", "-"), getattr(args, field.name)
        if field.name != "preset" and value is not None:
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def read_config(path: Path) -> dict[str, Any]:
    """Fields of `Config` from a JSON file, each checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON object, names an unknown field, or holds an impossible value; the file is named.
    """
    content, hints = read_settings(path, Config, "--config"), get_type_hints(Config)
    try:
        return {k: checked(k, v, hints[k], RANGES.get(k), FILE_CHOICES.get(k)) for k, v in content.items()}
    except ValueError as error:
        raise ValueError(f"`--config {path}`: {error}") from None


def descriptions() -> dict[str, str]:
    """What the docstring of `Config` says of every field."""
    text = (Config.__doc__ or "").split("Attributes:")[1]
    entries = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", text, flags=re.MULTILINE)
    return {name: " ".join(entry.split()) for name, entry in entries}
