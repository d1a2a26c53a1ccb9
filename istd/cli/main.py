"""The command line: argv is read here and nowhere else. A command's file is imported when it is called."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

COMMANDS = {
    "data": ("data", "say what a folder holds"),
    "train": ("train", "train a student from points"),
    "evaluate": ("evaluate", "score a trained student"),
    "detect": ("detect", "find targets in images"),
    "ablate": ("ablate", "measure what each part is worth"),
    "masks": ("masks", "draw pseudo-masks from points"),
    "pretrain": ("pretrain", "train a vision model on images without labels"),
    "import": ("importing", "make a student of a published checkpoint"),
    "list": ("listing", "list methods, students or VFMs"),
}
"""By name, the file of this folder that holds a command, and what it does."""


def parser() -> argparse.ArgumentParser:
    """The names of the commands."""
    p = argparse.ArgumentParser(
        prog="istd", description="Infrared small target detection from one point per target: train, evaluate, annotate."
    )
    subparsers = p.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        subparsers.add_parser(name, help=summary, add_help=False)
    return p


def command(name: str) -> argparse.ArgumentParser:
    """The parser of one command, whose defaults `run` and, for some, `kept` do the work."""
    module: Any = import_module(f"istd.cli.{COMMANDS[name][0]}")
    p = argparse.ArgumentParser(prog=f"istd {name}", allow_abbrev=False, add_help=False)
    p.add_argument("-h", "--help", action="store_true", help="show this message and exit")
    module.add(p)
    p.set_defaults(command=name)
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line; settings, which depend on the method, are left as words in `settings`.

    Raises:
        SystemExit: for an unknown command or flag, or after help was asked for.
    """
    if not argv or argv[0] not in COMMANDS:
        parser().parse_args(argv[:1] or ["--help"])
        raise SystemExit(2)
    p = command(argv[0])
    if "-h" in argv or "--help" in argv:
        print(p.format_help(), end="")
        if p.get_default("takes_settings"):
            _print_settings(p, [word for word in argv[1:] if word not in ("-h", "--help")])
        raise SystemExit(0)
    args, words = p.parse_known_args(argv[1:])
    if words and not p.get_default("takes_settings"):
        _refuse(p, words)
    args.settings = words
    return args


def _print_settings(p: argparse.ArgumentParser, words: Sequence[str]) -> None:
    from istd.cli.flags import help_of, settings_from

    for action in p._actions:
        action.required = False
    args, rest = p.parse_known_args(words)
    print(f"\nSettings, with the defaults of this method and preset:\n\n{help_of(settings_from(args, rest))}", end="")


def _refuse(p: argparse.ArgumentParser, words: Sequence[str]) -> None:
    known = [flag for action in p._actions for flag in action.option_strings]
    close = difflib.get_close_matches(words[0], known, 1, cutoff=0.6)
    p.error(f"unrecognized arguments: {' '.join(words)}" + (f"; did you mean {close[0]}?" if close else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 1 for divergence, 130 or 143 for a signal.

    The last are those of Ctrl-C and SIGTERM. 3 says that all is done but for inputs that could not be read, 141, as a
    shell does, that whoever read the output stopped reading.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    from bilevel import TrainingDiverged
    from bilevel.files import FileInUseError
    from istd.cli.common import SkippedInputs
    from istd.pretrained import PretrainedWeightsError
    from istd.runs.workers import WorkerDied

    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered must go somewhere at exit
        return 141
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PretrainedWeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingDiverged, WorkerDied, FileInUseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SkippedInputs as error:
        print(f"done, but {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"\ninterrupted; {args.kept(args) if 'kept' in args else 'nothing written'}", file=sys.stderr)
        return 130
    except SystemExit as stopped:
        if stopped.code != 128 + signal.SIGTERM:
            raise
        print(f"terminated; {args.kept(args) if 'kept' in args else 'nothing written'}", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0
