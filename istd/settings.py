"""The settings that every method shares, in groups. A method's file adds its own (`istd.methods`).

What a setting may be stands beside its type, what it means in the docstring of its group; flags, their help and the
reading of files are made of both (`istd.cli.flags`). Presets change defaults (`istd.training.presets`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from istd.data.normalisation import CHANNELS
from istd.labels import StartMasks
from istd.losses import SEGMENTATION_LOSSES
from istd.schema import BARE, OneOf, Range, changed, check, flat, nested
from istd.students import STUDENTS


@dataclass(frozen=True)
class Schedule:
    """How long to train, and when to look.

    Attributes:
        epochs: passes over the training pool.
        evaluate_every: period of validation in epochs.
        select_from: share of the epochs after which checkpoints are candidates. A small validation split ranks them
            with much noise; before the learning rate has fallen, the lucky ones are worse than the last.
        select_on: split that a checkpoint is chosen on: "val", or "test" to reproduce the sources' choice.
    """

    epochs: Annotated[int, Range(1)] = 300
    evaluate_every: Annotated[int, Range(1)] = 10
    select_from: Annotated[float, Range(0, 1)] = 0.7
    select_on: Annotated[str, OneOf(("val", "test"))] = "val"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Optimisation:
    """The inner steps.

    Attributes:
        batch_size: images per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        cosine: anneal the learning rate to 1 % of `lr` along a cosine.
        precision: "float32", or "bfloat16" (autocast, where the device computes in it; hypergradients and evaluation
            stay in float32).
        ema_decay: decay of the moving average of weights that is evaluated and exported; 0 switches it off.
    """

    batch_size: Annotated[int, Range(1)] = 16
    lr: Annotated[float, Range(0, above=True)] = 1e-3
    weight_decay: Annotated[float, Range(0)] = 1e-2
    cosine: bool = True
    precision: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.998

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Crops:
    """What a network sees of an image in training.

    Attributes:
        crop: side of training crops in pixels; a multiple of 32.
        on_target: share of crops placed around a point.
        scale: zoom factors are drawn from [1/scale, scale]; 1 switches it off.
        gain: contrast factors are drawn from [1/gain, gain]; 1 switches it off.
        noise: largest standard deviation of added noise, in units of the full range.
        normalise_per_image: use each image's own mean and deviation instead of the training set's.
        channels: what the input channels hold: "repeat" (published), "contrast" or "imagenet".
    """

    crop: Annotated[int, Range(32, 8192)] = 256
    on_target: Annotated[float, Range(0, 1)] = 0.7
    scale: Annotated[float, Range(1, 8)] = 1.0
    gain: Annotated[float, Range(1, 100)] = 1.0
    noise: Annotated[float, Range(0, 10)] = 0.0
    normalise_per_image: bool = False
    channels: Annotated[str, OneOf(CHANNELS)] = "repeat"

    def __post_init__(self) -> None:
        check(self)
        if self.crop % 32:
            raise ValueError(f"`crop` must be a positive multiple of 32, got {self.crop}.")


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on besides its data. Defaults are those of the `paper` preset.

    Attributes:
        method: how to train: a name in `istd list methods`.
        preset: the preset that this started from.
        seed: of weights, crops and clusters.
        student: the network that is trained and deployed: a name in `istd list students`.
        width: factor on the student's channels; 1 is the published network.
        pretrained: start a student that has pretrained weights from them; no: from random ones, for comparison.
        schedule: how long to train, and when to look.
        optimisation: the inner steps.
        data: what a network sees of an image in training.
        loss: segmentation loss.
        labels: the masks that training starts from.
    """

    method: str = ""
    preset: str = "paper"
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    student: Annotated[str, OneOf(STUDENTS)] = "alcl"
    width: Annotated[float, Range(0, 4, above=True)] = 1.0
    pretrained: bool = True
    schedule: Schedule = field(default_factory=Schedule, metadata=BARE)
    optimisation: Optimisation = field(default_factory=Optimisation, metadata=BARE)
    data: Crops = field(default_factory=Crops, metadata=BARE)
    loss: Annotated[str, OneOf(SEGMENTATION_LOSSES)] = "bce+soft-iou"
    labels: StartMasks = field(default_factory=StartMasks)

    def __post_init__(self) -> None:
        check(self)

    def changed(self, **changes: Any) -> Self:
        """Other settings of the same method; a setting is named by its path, or by its last name where that is enough.

        Raises:
            ValueError: for an unknown name, or an impossible value.

        Example:
            `settings.changed(epochs=20, **{"vfm.size": 64})`
        """
        return changed(self, changes, f"the method {self.method!r}")

    def flat(self) -> dict[str, Any]:
        """Every setting's value by its path: `{"schedule.epochs": 300, ...}`."""
        return flat(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data in groups, for files: `{"schedule": {"epochs": 300, ...}, ...}`."""
        return nested(self)
