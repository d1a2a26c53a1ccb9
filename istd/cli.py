"""The command line: argv is read here and nowhere else."""

import argparse
import os
import sys
from collections.abc import Sequence

from bilevel import TrainingDiverged
from istd.commands import ablate, detect, evaluate, listing, masks, pretrain, train
from istd.teacher import VFMWeightsError

COMMANDS = (train, evaluate, detect, ablate, masks, pretrain, listing)


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
    """Run the command line; returns the exit code (0, 2 for bad input, 1 for divergence, 130 for Ctrl-C).

    141 says, as a shell does, that whoever read the output stopped reading.
    """
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered must go somewhere at exit
        return 141
    except (ValueError, FileNotFoundError, FileExistsError, VFMWeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingDiverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_what_is_kept(args)}", file=sys.stderr)
        return 130
    return 0


def _what_is_kept(args: argparse.Namespace) -> str:
    if args.command == "train" and (args.out / "checkpoint.pt").exists():
        return f"the last finished epoch is in {args.out}/checkpoint.pt, continue with --resume"
    if args.command == "ablate" and args.out.exists():
        return f"what has run is in {args.out}, the same command goes on from there"
    return "nothing written"
