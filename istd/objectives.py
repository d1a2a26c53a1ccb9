"""The one meeting point with `bilevel`: teacher and student losses, registered as inner and outer objectives.

Each is a callable `loss(inner_module, outer_module, batch) -> 0-d tensor`. For the teacher methods the inner module is
a `Teacher` (the student's weights and SCAM), the outer module gives sample weights; for plain training the inner module
is the student itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel import INNER_OBJECTIVES, OUTER_OBJECTIVES
from istd.data.crops import Batch
from istd.losses import SEGMENTATION_LOSSES, SegmentationLoss, combined, distillation, weighted_mean
from istd.students import Student


def outline(target: Tensor) -> Tensor:
    """Where masks begin and end, `(B, 1, H, W) -> (B, 1, H, W)`.

    `sqrt(v^2 + h^2)`, v and h the differences of the lower and the upper, the right and the left neighbour, zero
    outside; limited to [1e-6, 1], so that its slope is finite on level ground. Soft masks give soft outlines.

    Source: ISNet (Zhang et al., 2022), which does not limit it.
    """
    around = F.pad(target, (1, 1, 1, 1))
    v = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    h = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    return (v.square() + h.square()).clamp(1e-12, 1).sqrt()


def decode_all(network: Any, image: Tensor) -> tuple[Tensor, ...]:
    """Logits of all maps that training supervises, of a normalised image `(B, C, H, W)`.

    A network that is no `Student` has one, its output.
    """
    if not isinstance(network, Student):
        return (network(image),)
    return network.decode_all(network.encode(image))


def supervision(loss: SegmentationLoss, maps: Sequence[Tensor], target: Tensor, network: Any) -> Tensor:
    """`sum_k v_k l(z_k, y_k)` over the maps z_k that a student declares as `outputs`, per sample: `(B,)`.

    v_k is the declared weight; y_k is the mask or its `outline`, brought to the size of z_k by maxima.

    Args:
        loss: the segmentation loss l, of maps whose publication gives them none of their own.
        maps: logits `(B, 1, h_k, w_k)` of `decode_all`.
        target: labels `(B, 1, H, W)`, hard or soft.
        network: the student.
    """
    outputs = getattr(network, "outputs", Student.outputs)
    total: Tensor | None = None
    for z, output in zip(maps, outputs, strict=True):
        y = target if output.target == "mask" else outline(target)
        if y.shape[-2:] != z.shape[-2:]:
            y = F.adaptive_max_pool2d(y, z.shape[-2:])
        measured = (loss if output.loss is None else combined(output.loss))(z, y)
        term = measured if output.weight == 1 else output.weight * measured
        total = term if total is None else total + term
    assert total is not None
    return total


@dataclass(frozen=True)
class Segmentation:
    """`mean_i w_i L(z_i, y_i)`: a student on its pseudo-masks.

    L is the `supervision` of all maps that the student declares, by the loss l.

    Attributes:
        loss: name of the segmentation loss l.
    """

    loss: str = "bce+soft-iou"

    def __call__(self, student: Any, weights: Any, batch: Batch) -> Tensor:
        """Weighted mean over the batch."""
        maps = decode_all(student, batch.image)
        losses = supervision(SEGMENTATION_LOSSES[self.loss], maps, batch.target, student)
        return weighted_mean(losses, weights(batch.index))


@dataclass(frozen=True)
class TeacherInner:
    """`mean_T w_i [L(z_t, y) + d KD(z_t, z_s)]_i + v mean_B w_i L(z_s, y)_i + g R`, z_s detached in KD.

    z_t and z_s are the logits of teacher and student, w_i the weight of sample i, L the `supervision` of all maps that
    the student declares by the loss l, KD the distillation loss between the maps used at test, R SCAM's gate penalty.
    The published objective has v = 0: the shared weights are then trained through the teacher alone, and the student
    follows by the outer steps. With v > 0 the bare path, which is deployed, learns too.

    Attributes:
        loss: name of the segmentation loss l; published: `"bce"`.
        distillation_weight: d, of the distillation from the student.
        gate_weight: g, of the gate penalty.
        student_loss_weight: v, of the student's own loss.
        teacher_share: share of the batch B that forms T and passes through the teacher as well; published 1. Encoder
            features are computed once for both passes.
        temperature: of the distillation.

    Source: semantic-priors (2026), equation 1 (constants 0.1, 0.005 and 4).
    """

    loss: str = "bce+soft-iou"
    distillation_weight: float = 0.1
    gate_weight: float = 5e-3
    student_loss_weight: float = 1.0
    teacher_share: float = 1.0
    temperature: float = 4.0

    def __call__(self, teacher: Any, weights: Any, batch: Batch) -> Tensor:
        """Weighted means over the batch plus the gate penalty."""
        assert batch.tokens is not None
        student, segment = teacher.student, SEGMENTATION_LOSSES[self.loss]
        features = student.encode(batch.image)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.student_loss_weight > 0):
            bare = student.decode_all(features) if self.student_loss_weight > 0 else (student.decode(features),)
        n = max(round(self.teacher_share * len(batch.image)), 1)
        taught = teacher.decode_all([f[:n] for f in features], batch.tokens[:n])
        losses = supervision(segment, taught, batch.target[:n], student)
        losses = losses + self.distillation_weight * distillation(taught[0], bare[0][:n].detach(), self.temperature)
        w = weights(batch.index)
        total = weighted_mean(losses, w[:n]) + self.gate_weight * teacher.adapter.gate_penalty()
        if self.student_loss_weight > 0:
            total = total + self.student_loss_weight * weighted_mean(
                supervision(segment, bare, batch.target, student), w
            )
        return torch.as_tensor(total)


@dataclass(frozen=True)
class StudentOuter:
    """`mean_i v_i [l(z_s, y) + d KD(z_s, z_t)]_i` on validation pseudo-masks, z_t detached.

    It judges what is deployed: of several maps, the one used at test.

    With `weighted=False` v_i = 1. The published form weights this mean by the very weights it learns, which rewards
    turning down whatever is hard to fit on validation; `weighted=True` reproduces it.

    Attributes:
        loss: name of the segmentation loss l.
        distillation_weight: d, of the distillation from the teacher.
        weighted: multiply by the sample weights, as published.
        temperature: of the distillation.

    Source: semantic-priors (2026), equation 2 (d = 1, temperature 4).
    """

    loss: str = "bce+soft-iou"
    distillation_weight: float = 1.0
    weighted: bool = False
    temperature: float = 4.0

    def __call__(self, teacher: Any, weights: Any, batch: Batch) -> Tensor:
        """Mean over the validation batch."""
        features = teacher.student.encode(batch.image)
        bare = teacher.student.decode(features)
        losses = SEGMENTATION_LOSSES[self.loss](bare, batch.target)
        if self.distillation_weight > 0:
            with torch.no_grad():
                taught = teacher.decode([f.detach() for f in features], batch.tokens)
            losses = losses + self.distillation_weight * distillation(bare, taught, self.temperature)
        return weighted_mean(losses, weights(batch.index)) if self.weighted else losses.mean()


@dataclass(frozen=True)
class BareOuter:
    """`mean_i l(z_i, y_i)`: a student without a teacher on validation pseudo-masks.

    Attributes:
        loss: name of the segmentation loss l.
    """

    loss: str = "bce+soft-iou"

    def __call__(self, student: Any, weights: Any, batch: Batch) -> Tensor:
        """Mean over the validation batch."""
        logits = student(batch.image)
        return SEGMENTATION_LOSSES[self.loss](logits, batch.target).mean()


@dataclass(frozen=True)
class LearnedSegmentation:
    """`mean_i w_i L(z_i, y_i(t))`: a student on labels that depend on learned numbers t, with learned weights w.

    L is the `supervision` of all maps that the student declares. The outer module is a `WeightsAndLabels`; the
    hypergradient of t runs through the labels into the inner steps.

    Attributes:
        loss: name of the segmentation loss l.
    """

    loss: str = "soft-iou"

    def __call__(self, student: Any, outer: Any, batch: Batch) -> Tensor:
        """Weighted mean over the batch."""
        maps = decode_all(student, batch.image)
        losses = supervision(SEGMENTATION_LOSSES[self.loss], maps, outer.labels(batch.target), student)
        return weighted_mean(losses, outer(batch.index))


class WeightsAndLabels(nn.Module):
    """An outer module of two: sample weights, and the numbers that labels are drawn with."""

    def __init__(self, weights: nn.Module, labels: nn.Module) -> None:
        super().__init__()
        self.weights, self.labels = weights, labels

    def forward(self, samples: Tensor) -> Tensor:
        """`(B,)` sample indices -> `(B,)` weights."""
        out: Tensor = self.weights(samples)
        return out


@dataclass(frozen=True)
class PointOuter:
    """`-log p` at the points, `-log(1 - p)` far from all of them: an outer loss that needs nothing but the points.

    With a the map of pixels next to a point and b that of pixels that count (`istd.labels.point_maps`), it is
    `sum a (-log p) / sum a + sum (b - a) (-log(1 - p)) / sum (b - a)` over the batch, of the bare student. Pixels that
    may or may not belong to a target do not count, so it is silent about a target's size: what it can teach is which
    samples help to find targets, and to keep quiet elsewhere.
    """

    def __call__(self, network: Any, outer: Any, batch: Batch) -> Tensor:
        """Mean over the pixels that count."""
        z = network.student(batch.image)
        at, counted = batch.target[:, :1], batch.target[:, 1:]
        away = counted - at
        hit = (at * F.softplus(-z)).sum() / at.sum().clamp(min=1)
        return hit + (away * F.softplus(z)).sum() / away.sum().clamp(min=1)


INNER_OBJECTIVES.register("istd.segmentation", Segmentation())
INNER_OBJECTIVES.register("istd.learned-labels", LearnedSegmentation())
INNER_OBJECTIVES.register("istd.teacher", TeacherInner())
INNER_OBJECTIVES.register("istd.teacher-published", TeacherInner(loss="bce", student_loss_weight=0.0))
OUTER_OBJECTIVES.register("istd.bare", BareOuter())
OUTER_OBJECTIVES.register("istd.points", PointOuter())
OUTER_OBJECTIVES.register("istd.student", StudentOuter())
OUTER_OBJECTIVES.register("istd.student-published", StudentOuter(loss="bce", weighted=True))
