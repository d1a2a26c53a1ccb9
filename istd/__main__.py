"""`python -m istd` is the command `istd`."""

import sys

from istd.cli import main

if __name__ == "__main__":
    sys.exit(main())
