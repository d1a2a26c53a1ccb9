"""PAL (2025): easy images first, labels that follow the network, hard images admitted as it improves.

What it is. A closed Canny contour around each point is the start mask, if it is small enough; images with at least
four of five points so explained train first. After a fifth of the schedule, every five epochs, labels move towards
what the network predicts around them (`istd.labels.evolution`), pixels that no prediction confirms fade by 0.97, and
a waiting image is admitted, up to four fifths of the schedule, once its prediction covers its points without too many
false alarms, a tolerance that loosens with time. The loss is cross-entropy, fourfold on label boundaries, over the
harder half of the pixels. No outer problem.

Where it departs from the release:

- Optimizer, schedule, augmentation, averaged weights and the choice of a checkpoint are the harness's, the same for
  every row; PAL's own choose on the test split.
- Start masks are the release's, pixel by pixel (`istd.labels.canny`). On SIRST-v1's training and validation images
  they have an IoU of 28 % (`benchmarks/pseudo_masks.py`).
- Label updates and admissions are the release's to the last bit, too, in 8-bit labels (`evolve_stored`).
- The first update comes at a fifth of the schedule; the release begins one period later.
"""

import math

from istd.methods.registry import METHODS, Method

METHODS.register(
    "pal",
    Method(
        "PAL: Canny start, easy images first, labels evolve and hard images are admitted",
        evolves=True,
        about=__doc__,
        settings={
            "initial": "canny",
            "loss": "edge-ohem",
            "anchors": "ones",
            "evolve_stored": "uint8",
            "evolve_relative": False,
            "evolve_cap": math.inf,
            "evolve_from": 0.2,
            "evolve_until": 1.0,
            "evolve_every": 5,
            "alarms": 5.0,
        },
    ),
)
