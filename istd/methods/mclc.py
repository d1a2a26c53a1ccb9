"""MCLC (2023): superpixels of noisy copies vote for a mask, which then stays.

What it is. Around each point, many copies of the image with salt noise are cut into superpixels; how often a pixel
shares the point's superpixel is its probability of belonging to the target. Ordinary training on the thresholded
masks follows.

Where it departs from the release:

- The release takes the window's size from the true mask's area (`labels.leaks_mask_area=True`) and refines with
  DenseCRF (`labels.crf=True`). By default the window is fixed and the counts are cut at half of their maximum.
- Optimizer, schedule, augmentation, averaged weights and the choice of a checkpoint are those of every row here: the
  row differs from `plain` by its start masks alone.
"""

from dataclasses import dataclass, field

from istd.labels import StartMasks
from istd.methods.base import METHODS, Method
from istd.methods.plain import build
from istd.settings import Settings


@dataclass(frozen=True)
class MCLC(Settings):
    """Settings of MCLC."""

    labels: StartMasks = field(default_factory=lambda: StartMasks(rule="monte-carlo"))


METHODS.register("mclc", Method("MCLC: Monte-Carlo superpixel masks, kept fixed", MCLC, build, __doc__))
