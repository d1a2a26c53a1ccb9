"""Inference: images of any size through a bare student, padded to its stride and cropped back. No timm, no VFM."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from istd.data.normalisation import Normalisation
from istd.data.sensor import SENSOR, SensorRange
from istd.inference.padding import pad_to_multiple, stride_of
from istd.students import in_fast_format, inference_form

TOLERANCE = 1e-3  # rounding of resampled images


@torch.no_grad()
def predict(
    network: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    normalisation: Normalisation,
    stride: int,
    device: torch.device | str = "cpu",
    channels: int = 3,
) -> NDArray[np.float32]:
    """Probabilities of one image.

    Args:
        network: normalised `(1, C, H, W)` -> logits `(1, 1, H, W)`, in eval mode.
        image: `(H, W)` intensities in [0, 1].
        normalisation: the constants of training.
        stride: H and W are padded to multiples of it.
        device: where to run.
        channels: C, of the network's input.

    Returns:
        `(H, W)` float32 probabilities at the image's own size.
    """
    constants = torch.tensor([normalisation.constants(image)], dtype=torch.float32)
    x = normalisation(torch.from_numpy(np.ascontiguousarray(image))[None, None].float(), constants, channels).to(device)
    logits = network(pad_to_multiple(x, stride))
    height, width = image.shape
    return np.asarray(logits.float().sigmoid()[0, 0, :height, :width].cpu().numpy())


class StudentPredictor:
    """A student with its normalisation: `(H, W)` image in, `(H, W)` probabilities out.

    Args:
        student: a network of `istd.students`.
        normalisation: the constants of its training.
        device: where to run.
        sensor: how the images of its training became intensities: `read_image(path, predictor.sensor)` reads new ones
        alike.
    """

    def __init__(
        self,
        student: nn.Module,
        normalisation: Normalisation,
        device: torch.device | str = "cpu",
        sensor: SensorRange = SENSOR,
    ) -> None:
        self.student: Any = in_fast_format(inference_form(student).to(device), training=False)
        self.normalisation, self.device, self.sensor = normalisation, device, sensor
        self.stride = stride_of(student)
        self.channels = int(getattr(student, "in_channels", 3))

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of one image.

        Args:
            image: `(H, W)` floating-point intensities in [0, 1], as `istd.data.images.read_image` gives them.

        Raises:
            TypeError: for integers, whose range cannot be known: 255 may be the largest of 8 or a faint one of 14 bits.
            ValueError: for another shape, or intensities outside [0, 1].
        """
        check_image(image)
        return predict(self.student, image, self.normalisation, self.stride, self.device, self.channels)


def check_image(image: NDArray[Any]) -> None:
    """Refuse what is no image of intensities in [0, 1]; see `StudentPredictor.__call__`."""
    if not isinstance(image, np.ndarray) or not np.issubdtype(image.dtype, np.floating):
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"`image` must be a floating-point array of intensities in [0, 1], got {kind}; divide 8-bit images by 255, "
            "or read files with istd.data.images.read_image."
        )
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"`image` must be (H, W), got {image.shape}.")
    low, high = float(image.min()), float(image.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also refuses NaN
        raise ValueError(f"`image` must lie in [0, 1], got values from {low:g} to {high:g}; scale it first.")
