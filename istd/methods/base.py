"""What a method is: settings of its own, and a function that builds the parts of a training run from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bilevel import HypergradientMethod
from bilevel.registry import Registry
from bilevel.reweighting import UniformWeights
from istd.data.dataset import Dataset, Sample
from istd.inference.padding import stride_of
from istd.labels import Labels
from istd.labels.updates import Predictor
from istd.settings import Settings
from istd.students import Student
from istd.teacher.vision import VFM, Vision

Target = Callable[[int], NDArray[Any]]
"""What the batches of an objective hold as the target of image i; see `istd.data.crops.CropLoader`."""


@dataclass(frozen=True)
class Context:
    """What a method finds when it builds its parts.

    Attributes:
        dataset: three splits of samples.
        student: the network to train, on its device.
        device: where to train.
        progress: show progress bars.
    """

    dataset: Dataset
    student: Student
    device: torch.device
    progress: bool = True

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images that have labels and weights: training, then validation."""
        return self.dataset.train + self.dataset.val

    @property
    def images(self) -> list[NDArray[np.float32]]:
        """Their images."""
        return [s.image for s in self.samples]

    def see(self, vfm: VFM) -> Vision:
        """A VFM, and what it sees in these images."""
        return Vision.open(vfm, self.images, stride_of(self.student), self.device, self.progress)

    @property
    def training(self) -> NDArray[np.int64]:
        """Positions of the training images in `samples`."""
        return np.arange(len(self.dataset.train))

    @property
    def validation(self) -> NDArray[np.int64]:
        """Positions of the validation images in `samples`."""
        return np.arange(len(self.dataset.train), len(self.samples))


@dataclass(frozen=True)
class OuterProblem:
    """The outer half of a bilevel run.

    Attributes:
        loss: the outer objective.
        target: what it compares with.
        hypergradient: how outer steps get their direction.
        parameter_groups: of the outer optimizer.
        shared: inner variables that outer steps move along their direct gradient, too.
        every: period of outer phases in epochs; the first is due after as many.
        steps: outer steps in a phase.
    """

    loss: Any
    target: Target
    hypergradient: HypergradientMethod
    parameter_groups: list[dict[str, Any]]
    shared: list[nn.Parameter]
    every: int
    steps: int


def no_callbacks(predict: Predictor) -> list[Any]:
    """What a method does around its training steps unless it says otherwise: nothing."""
    return []


@dataclass(frozen=True)
class Parts:
    """What a training run is made of.

    Attributes:
        network: what the inner steps train: the student, or a teacher around it.
        inner_loss: the inner objective.
        labels: the pseudo-masks, at every moment of the run.
        target: what the inner objective compares with.
        weights: module of sample weights, indices `(B,)` to weights `(B,)`.
        outer_module: holds the outer variables: the weights, and what else is learned.
        outer: the outer problem, or None for a method without one.
        callbacks: `callbacks(predict)`: what happens around the steps; `predict(i)` gives the averaged network's
            probabilities of image i, a teacher's where there is one.
        vision: the VFM, for a method with a teacher.
    """

    network: nn.Module
    inner_loss: Any
    labels: Labels
    target: Target
    weights: nn.Module = field(default_factory=UniformWeights)
    outer_module: nn.Module | None = None
    outer: OuterProblem | None = None
    callbacks: Callable[[Predictor], Sequence[Any]] = no_callbacks
    vision: Vision | None = None


@dataclass(frozen=True)
class Method:
    """One training method.

    Attributes:
        summary: one line for listings.
        settings: its settings, a dataclass derived from `Settings`; its defaults are the method's own.
        build: from context and settings to the parts of a run.
        about: a page on what it is and where it departs from its source; the docstring of the method's file.
        fixed: groups and settings that its source states in full, so that presets leave them alone.
    """

    summary: str
    settings: type[Settings]
    build: Callable[[Context, Any], Parts]
    about: str
    fixed: tuple[str, ...] = ()


METHODS: Registry[Method] = Registry("method")
