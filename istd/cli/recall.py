"""`--resume` takes flags that are not given again from the run's own folder."""

import argparse
from pathlib import Path
from typing import Any

from istd.cli.flags import CHOSEN, parse, read_values, todays_flags
from istd.files import read_json
from istd.runs.folder import RunFolder
from istd.settings import Settings

NOT_KEPT = {
    *("command", "run", "kept", "parser", "takes_settings", "help"),
    *("out", "resume", "overwrite", "quiet", "device"),
    *("settings", "method", "preset", "config"),  # config.json holds what they came to
}


def flags_to_keep(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as plain data; a folder of images by its absolute path."""
    return {
        name: _plain(value)
        for name, value in vars(args).items()
        if name not in NOT_KEPT and value != args.parser.get_default(name)
    }


def recall(args: argparse.Namespace) -> None:
    """Fill in the flags that a run was started with, where they are not given now.

    Raises:
        ValueError: if `run.json` is torn, or holds what no flag could.
    """
    path = args.out / "run.json"
    if not path.is_file():
        return
    kept = read_json(path).get("flags", {})
    kinds = {action.dest: action.type for action in args.parser._actions}
    if not isinstance(kept, dict):
        raise ValueError(f"{path} holds no flags; was it edited?")
    for name, value in kept.items():
        if name in NOT_KEPT or name not in kinds:
            raise ValueError(f"{path} names the unknown flag {name!r}; was it edited?")
        if getattr(args, name) != args.parser.get_default(name):
            continue  # given now; if it differs, the checkpoint says so
        kind: Any = kinds[name] or (lambda x: x)
        try:
            setattr(args, name, [kind(v) for v in value] if isinstance(value, list) else kind(value))
        except (TypeError, ValueError):
            raise ValueError(f"{path} holds {value!r} for the flag {name!r}; was it edited?") from None


def resumed_settings(args: argparse.Namespace) -> Settings:
    """The settings of the run in `--out`, with those that are given now.

    Raises:
        ValueError: for an impossible value, or another method.
        FileNotFoundError: if the run left no settings behind.
    """
    folder = RunFolder(args.out)
    if not folder.settings.is_file():
        raise FileNotFoundError(f"{args.out} lacks the run's config.json, so it cannot be resumed; start it afresh.")
    stored = folder.read_settings()
    values = read_values(args.config, stored.method) if args.config is not None else {}
    for name in CHOSEN:
        given = getattr(args, name) or values.pop(name, None)
        if given not in (None, getattr(stored, name)):
            raise ValueError(
                f"The run in {args.out} has {name}={getattr(stored, name)!r} and cannot be resumed with {given!r}; "
                f"drop --{name}, or train afresh in another --out."
            )
    return parse(stored.changed(**values), todays_flags(args.settings))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
