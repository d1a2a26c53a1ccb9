"""Flags of a run's settings: tyro makes them, and their help, from the fields and docstrings of the dataclasses.

Groups that every method has (`COMMON`) need no prefix, `--epochs 20`; those of a component have its name,
`--vfm.size 64`.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from istd.files import read_settings
from istd.methods import METHODS
from istd.schema import OneOf, changed, flat, path_of, value_at, with_infinities
from istd.settings import Settings
from istd.training.legacy import RENAMED, is_flat, translated
from istd.training.presets import DEFAULT_METHOD, PRESETS, configure, scaled_periods, usual_settings

COMMON = tuple(f.name for f in fields(Settings) if f.metadata.get("bare"))
CHOSEN = ("method", "preset")  # by flags of their own: all others depend on them


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, `--method` and `--config`; what else stands on the command line goes to `settings_from`."""
    parser.add_argument("--preset", choices=list(PRESETS), help="default: cpu with --data, smoke without")
    parser.add_argument("--method", choices=list(METHODS), help=f"how to train; default {DEFAULT_METHOD}")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML, TOML or JSON with some settings, such as a run's config.json; flags win",
    )


def settings_from(args: argparse.Namespace, flags: Sequence[str]) -> Settings:
    """The frozen settings that preset, method, file and flags describe, each overriding the one before.

    Periods scale with the epochs (`istd.training.presets.configure`), those of a file with the epochs that it names.

    Args:
        args: parsed flags of `add_settings_flags`, and `data`.
        flags: the rest of the command line: settings.

    Raises:
        ValueError: for a file that cannot be read, an unknown setting in it, or an impossible value.
        SystemExit: after help was asked for, or for flags that are none.
    """
    values = read_values(args.config, args.method) if args.config is not None else {}
    preset = args.preset or values.get("preset") or ("cpu" if args.data else "smoke")
    method = args.method or values.get("method") or DEFAULT_METHOD
    given = {k: v for k, v in values.items() if k not in CHOSEN}
    base = configure(preset, method, given)
    words = todays_flags(flags)
    wanted = parse(base, words).schedule.epochs if _names(words, "epochs") else base.schedule.epochs
    if wanted != base.schedule.epochs:
        scaled = scaled_periods(flat(base), wanted)
        if "schedule.epochs" not in given:
            scaled = {k: v for k, v in scaled.items() if k not in given}
        base = base.changed(**{"schedule.epochs": wanted, **scaled})
    if not _names(words, "vfm.random", "vfm.no-random") and _names(words, "vfm.name", "vfm.weights"):
        base = base.changed(**{"vfm.random": False})  # naming a model or its weights asks for trained ones
    return parse(base, words)


def read_values(path: Path, method: str | None = None) -> dict[str, Any]:
    """Settings by their paths from a file, of this release or an earlier one; each name and value is checked.

    Args:
        path: YAML, TOML or JSON.
        method: in place of the file's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, names an unknown setting, or holds an impossible value; the file is named.
    """
    values = read_settings(path)
    try:
        for name, known in (("method", METHODS), ("preset", PRESETS)):
            if name in values:
                if not isinstance(values[name], str):
                    raise ValueError(f"`{name}` must be a text, got {values[name]!r}.")
                known[values[name]]
        name = method or values.get("method") or DEFAULT_METHOD
        if is_flat(values):
            values = translated(values, name)
        kind = METHODS[name].settings
        values = {k if k in CHOSEN else path_of(kind, k, f"the method {name!r}"): v for k, v in values.items()}
        values = with_infinities(kind, values)
        changed(usual_settings("paper", name), {k: v for k, v in values.items() if k not in CHOSEN})
    except ValueError as error:
        raise ValueError(f"`--config {path}`: {error}") from None
    return values


def parse(defaults: Settings, flags: Sequence[str]) -> Settings:
    """Settings that flags change.

    Raises:
        ValueError: for an impossible value.
        SystemExit: for flags that are none, after a message that names the nearest ones.
    """
    import tyro

    words = list(flags)
    kind = flags_of(type(defaults))
    found = tyro.cli(kind, args=words, default=_as(kind, defaults), prog="istd", add_help=False)
    old = flat(defaults)
    new = {path: value_at(found, path) for path in old if path not in CHOSEN}
    return defaults.changed(**{path: value for path, value in new.items() if value != old[path]})


def help_of(defaults: Settings) -> str:
    """The help on all settings of a method, with its defaults."""
    import tyro

    text = io.StringIO()
    kind = flags_of(type(defaults))
    with redirect_stdout(text), suppress(SystemExit):
        tyro.cli(kind, args=["--help"], default=_as(kind, defaults), prog="istd")
    return text.getvalue()


def todays_flags(flags: Sequence[str]) -> list[str]:
    """Flags of earlier releases under their new names, with a word on standard error for each."""
    words = []
    for word in flags:
        name, equals, value = word.removeprefix("--").partition("=")
        negated = name.startswith("no-")
        old = name.removeprefix("no-").replace("-", "_") if word.startswith("--") else ""
        path = RENAMED.get(old, "")
        group, _, last = path.rpartition(".")
        if path and group not in COMMON:
            new = f"--{group}.{'no-' if negated else ''}{last}" if group else f"--{'no-' if negated else ''}{last}"
            new = new.replace("_", "-")
            print(f"note: --{name} is called {new} now", file=sys.stderr)
            word = f"{new}{equals}{value}"
        elif path and last != old:
            print(f"note: --{name} is called --{last.replace('_', '-')} now", file=sys.stderr)
            word = f"--{last.replace('_', '-')}{equals}{value}"
        words.append(word)
    return words


_MADE: dict[type, type] = {}


def flags_of(kind: type) -> type:
    """A dataclass like `kind` as tyro reads it: names with their choices, common groups without a prefix."""
    if kind in _MADE:
        return _MADE[kind]
    import tyro

    hints, members = get_type_hints(kind, include_extras=True), []
    for f in fields(kind):
        hint: Any = hints[f.name]
        if is_dataclass(hint):
            hint = flags_of(hint)  # type: ignore[arg-type]
            if f.metadata.get("bare"):
                hint = Annotated[hint, tyro.conf.OmitArgPrefixes]
        elif f.name in CHOSEN:
            hint = Annotated[hint, tyro.conf.Suppress]
        else:
            hint = _with_choices(hint)
        default = f.default if f.default is not MISSING else MISSING
        if default is not MISSING:
            members.append((f.name, hint, dataclass_field(default=default)))
        else:
            members.append((f.name, hint, dataclass_field(default_factory=f.default_factory, metadata=f.metadata)))
    namespace = {"__post_init__": lambda self: None}  # values are checked when the settings are made
    made = make_dataclass(kind.__name__, members, bases=(kind,), frozen=True, namespace=namespace)
    made.__doc__ = kind.__doc__
    made.__module__ = kind.__module__
    _MADE[kind] = made
    return made


def _with_choices(hint: Any) -> Any:
    if get_origin(hint) is not Annotated:
        return hint
    plain, *extras = get_args(hint)
    choices = next((e for e in extras if isinstance(e, OneOf)), None)
    return plain if choices is None else Literal[tuple(choices)]


def _as(kind: type, settings: Any) -> Any:
    """The same values as an instance of the dataclass that `flags_of` made."""
    hints = get_type_hints(kind)
    values = {}
    for f in fields(kind):
        value = getattr(settings, f.name)
        values[f.name] = _as(hints[f.name], value) if is_dataclass(value) else value
    return kind(**values)


def _names(words: Sequence[str], *names: str) -> bool:
    return any(word.partition("=")[0] == f"--{name}" for word in words for name in names)
