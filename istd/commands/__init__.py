"""The subcommands of `istd`, one file each: `add(subparsers)` declares flags, `run(args)` does the work."""
