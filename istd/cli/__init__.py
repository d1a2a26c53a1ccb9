"""The command line `istd`, one file a command: `add(parser)` declares its flags, and its `run` does the work."""

from istd.cli.main import main

__all__ = ["main"]
