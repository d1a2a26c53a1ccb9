"""The command line: argv is read here and nowhere else."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from bilevel import TrainingDiverged
from bilevel.files import FileInUseError
from istd.commands import ablate, data, detect, evaluate, importing, listing, masks, pretrain, train
from istd.commands.common import SkippedInputs
from istd.teacher import VFMWeightsError
from istd.workers import WorkerDied

COMMANDS = (data, train, evaluate, detect, ablate, masks, pretrain, importing, listing)


def parser() -> argparse.ArgumentParser:
    """The subcommands and their flags."""
    p = argparse.ArgumentParser(
        prog="istd", description="Infrared small target detection from one point per target: train, evaluate, annotate."
    )
    subparsers = p.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 1 for divergence, 130 or 143 for a signal.

    The last are those of Ctrl-C and SIGTERM. 3 says that all is done but for inputs that could not be read, 141, as a
    shell does, that whoever read the output stopped reading.
    """
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered must go somewhere at exit
        return 141
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, VFMWeightsError) as error:
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
