"""Inference: images of any size through a bare student, padded to its stride and cropped back. No timm, no VFM."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from istd.data.crops import Normalisation
from istd.data.sensor import SENSOR, SensorRange
from istd.students import inference_form, repeat_channels, stages_of


def pad_to_multiple(image: Tensor, stride: int) -> Tensor:
    """Reflect the last rows and columns of `(B, C, H, W)` until H and W are multiples of `stride`."""
    height, width = image.shape[-2:]
    bottom, right = -height % stride, -width % stride
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode) if bottom or right else image


@torch.no_grad()
def predict(
    network: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    normalisation: Normalisation,
    stride: int,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Probabilities of one image.

    Args:
        network: normalised `(1, C, H, W)`, C = 1 or 3 -> logits `(1, 1, H, W)`, in eval mode.
        image: `(H, W)` intensities in [0, 1].
        normalisation: the constants of training.
        stride: H and W are padded to multiples of it.
        device: where to run.

    Returns:
        `(H, W)` float32 probabilities at the image's own size.
    """
    constants = torch.tensor([normalisation.constants(image)], dtype=torch.float32)
    x = normalisation(torch.from_numpy(np.ascontiguousarray(image))[None, None].float(), constants).to(device)
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
        self.student: Any = inference_form(student).to(device)
        self.normalisation, self.device, self.sensor = normalisation, device, sensor
        self.stride = max(stage.stride for stage in stages_of(student))

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of one image."""
        return predict(
            lambda x: self.student(repeat_channels(x, self.student)),
            image,
            self.normalisation,
            self.stride,
            self.device,
        )
