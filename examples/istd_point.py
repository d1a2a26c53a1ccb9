"""Infrared small target detection from one point per target, from the data to a deployable student.

    python examples/istd_point.py                                  # synthetic scenes, a few minutes on a CPU
    python examples/istd_point.py --data DIR --preset cpu --out runs/x --vfm-random

This is `istd train`; every flag is explained by --help. From Python: `istd.runs.run(config, dataset, out)`.
"""

import sys

from istd.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
