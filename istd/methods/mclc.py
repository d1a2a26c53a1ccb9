"""MCLC (2023): superpixels of noisy copies vote for a mask, which then stays.

What it is. Around each point, many copies of the image with salt noise are cut into superpixels; how often a pixel
shares the point's superpixel is its probability of belonging to the target. Ordinary training on the thresholded
masks follows.

Where it departs from the release:

- The release takes the window's size from the true mask's area (`leaks_mask_area=True`) and refines with DenseCRF
  (`crf=True`). By default the window is fixed and the counts are cut at half of their maximum.
- Training is the harness's: the row differs from `plain` by its start masks alone.
"""

from istd.methods.registry import METHODS, Method

METHODS.register(
    "mclc",
    Method("MCLC: Monte-Carlo superpixel masks, kept fixed", about=__doc__, settings={"initial": "monte-carlo"}),
)
