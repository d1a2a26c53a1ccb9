"""What the rest of the system asks of a student network."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """One encoder output that a teacher may modulate: its channel count and its stride in input pixels."""

    channels: int
    stride: int


class Output(NamedTuple):
    """One map that training supervises.

    Attributes:
        name: what the map is.
        weight: factor on its loss.
        target: what it is compared with: `"mask"`, or `"edge"` (the outline of the mask).
        loss: the loss that its publication gives it, as (factor, name of a segmentation loss) to be summed
            (`istd.losses.combined`); None where it gives all maps one loss.
    """

    name: str
    weight: float = 1.0
    target: str = "mask"
    loss: tuple[tuple[float, str], ...] | None = None


class Student(nn.Module, ABC):
    """An encoder, a decoder, and the stages between them, which a subclass declares.

    `decode(encode(x)) == forward(x)`: the teacher modulates what `encode` returns and hands it to `decode`.

    Attributes:
        stages: what `encode` returns, in order.
        in_channels: channels of the input image; images of this field have one, which is repeated (`Normalisation`).
        outputs: the maps that training supervises; the first is the one used at test.
        contiguous_training: whether it trains faster in contiguous order than in channels-last, in float32 on a CPU
            (`istd.students.memory`).
    """

    stages: tuple[Stage, ...]
    in_channels: int = 3
    outputs: tuple[Output, ...] = (Output("mask"),)
    contiguous_training: bool = False

    @abstractmethod
    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, stage.channels, H / stage.stride, W / stage.stride)]`, one per stage."""

    @abstractmethod
    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the map used at test, `outputs[0]`."""

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits of all `outputs` in their order.

        Each is `(B, 1, H, W)`, or `(B, 1, H/s, W/s)` where the publication compares at a smaller size; the target is
        then brought to that size by maxima.
        """
        return (self.decode(features),)

    @property
    def student(self) -> "Student":
        """The network that is deployed: itself. A teacher answers with the student inside it."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_channels, H, W) -> (B, 1, H, W)` logits; H and W divisible by the largest stride of `stages`."""
        return self.decode(self.encode(x))
