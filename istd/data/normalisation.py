"""What a network sees of an image: normalised intensities, by the constants of its training or of released code."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from istd.data.dataset import Sample

CHANNELS = ("repeat", "contrast", "imagenet")
LOCAL = 31  # px: the window over which local contrast is defined for small targets, the largest of them 15 px wide
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue in ImageNet, of intensities in [0, 1]."""


@dataclass(frozen=True)
class Normalisation:
    """What a student sees of an image; travels with an exported student.

    `repeat` gives `(x - mean) / std`, which the networks repeat on their three input channels, as published. `contrast`
    uses those channels: x by the statistics of the training set, x by those of its own image (`(x - m) / s`), and its
    local contrast `(x - mean of x over 31 x 31 pixels) / s`. The same network, parameters and cost; but a crop then
    knows how bright its image is, and a target stands out by its contrast whatever the sensor's gain and offset.
    `imagenet` normalises x on each of three channels by the constants of ImageNet, as MSHNet does.

    Attributes:
        mean: of the training images' pixels; `imagenet` does not use it.
        std: of the training images' pixels; `imagenet` does not use it.
        per_image: in `repeat`, use each image's own mean and standard deviation instead.
        channels: `repeat`, `contrast` or `imagenet`.
    """

    mean: float
    std: float
    per_image: bool = False
    channels: str = "repeat"

    @classmethod
    def fit(cls, samples: Sequence[Sample], per_image: bool = False, channels: str = "repeat") -> "Normalisation":
        """Mean and standard deviation over all pixels of the training images."""
        count = sum(s.image.size for s in samples)
        mean = sum(float(s.image.sum(dtype=np.float64)) for s in samples) / count
        variance = sum(float(np.square(s.image - mean).sum(dtype=np.float64)) for s in samples) / count
        return cls(mean, max(variance**0.5, 1e-3), per_image, channels)

    def constants(self, image: NDArray[np.float32]) -> tuple[float, float]:
        """Mean and standard deviation of a whole image `(H, W)`."""
        return float(image.mean()), max(float(image.std()), 1e-3)

    def __call__(self, images: Tensor, constants: Tensor, channels: int = 3) -> Tensor:
        """Normalise images or crops, and give them the channels of a network's input.

        Args:
            images: `(B, 1, H, W)` intensities in [0, 1].
            constants: `(B, 2)`, the `constants` of the images they were cut from.
            channels: C; a single normalised channel is repeated, a view without copies.

        Returns:
            `(B, C, H, W)`.

        Raises:
            ValueError: see `check_channels`.
        """
        self.check_channels(channels)
        return self._normalised(images, constants).expand(-1, channels, -1, -1)

    def check_channels(self, channels: int) -> None:
        """Refuse a network whose input cannot be filled.

        Raises:
            ValueError: if `contrast` or `imagenet`, which give three channels, are to give another number.
        """
        if self.channels != "repeat" and channels != 3:
            raise ValueError(
                f"`channels={self.channels!r}` gives three input channels, and the network takes {channels}; use "
                "`channels='repeat'`."
            )

    def _normalised(self, images: Tensor, constants: Tensor) -> Tensor:
        if self.channels == "imagenet":
            centre, spread = (images.new_tensor(values)[:, None, None] for values in IMAGENET)
            return (images - centre) / spread
        mean, std = constants[:, 0, None, None, None], constants[:, 1, None, None, None]
        if self.channels == "repeat":
            return (images - mean) / std if self.per_image else (images - self.mean) / self.std
        around = F.avg_pool2d(images, LOCAL, stride=1, padding=LOCAL // 2, count_include_pad=False)
        return torch.cat([(images - self.mean) / self.std, (images - mean) / std, (images - around) / std], dim=1)


def grey_levels(mean: float, std: float) -> Normalisation:
    """`(x - mean) / std` with constants in grey levels, 0 to 255, as published code states them."""
    return Normalisation(mean / 255, std / 255)


NORMALISATIONS: dict[str, Normalisation] = {
    "nuaa-sirst": grey_levels(101.06385040283203, 34.619606018066406),
    "nudt-sirst": grey_levels(107.80905151367188, 33.02274703979492),
    "irstd-1k": grey_levels(87.4661865234375, 39.71953201293945),
    "nudt-sirst-sea": grey_levels(43.62403869628906, 18.91838264465332),
    "sirst3": grey_levels(95.010, 41.511),
    "imagenet": Normalisation(0.0, 1.0, channels="imagenet"),
}
"""By training set, those of LESPS and BasicIRSTD, which others took over; `imagenet`, that of MSHNet."""
