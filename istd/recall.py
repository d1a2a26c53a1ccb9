"""`--resume` takes what it is not told again from the run's own folder."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from istd.config import Config
from istd.flags import flags_of, read_config
from istd.folder import read_json

NOT_KEPT = {"command", "run", "kept", "parser", "out", "resume", "overwrite", "quiet", "device"}


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


def resumed_config(args: argparse.Namespace) -> Config:
    """The configuration of the run in `--out`, with the flags that are given now.

    Raises:
        ValueError: for an impossible value.
        FileNotFoundError: if the run left no configuration behind.
    """
    path: Path = args.out / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{args.out} lacks the run's config.json, so it cannot be resumed; start it afresh.")
    stored = Config(**read_config(path))
    given = read_config(args.config) if args.config is not None else {}
    given |= {name: value for name, value in flags_of(args).items() if value is not None}
    return replace(stored, **given)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
