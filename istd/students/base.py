"""What the rest of the system asks of a student network."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """One encoder output that a teacher may modulate: its channel count and its stride in input pixels."""

    channels: int
    stride: int


class Student(nn.Module, ABC):
    """An encoder, a decoder, and the stages between them, which a subclass declares.

    `decode(encode(x)) == forward(x)`: the teacher modulates what `encode` returns and hands it to `decode`.
    """

    stages: tuple[Stage, ...]

    @abstractmethod
    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, stage.channels, H / stage.stride, W / stage.stride)]`, one per stage."""

    @abstractmethod
    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W) -> (B, 1, H, W)` logits; H and W divisible by the largest stride of `stages`."""
        return self.decode(self.encode(x))
