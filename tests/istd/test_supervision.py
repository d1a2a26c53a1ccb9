"""Networks of several maps train with all of them, and networks of any input channels are fed."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.data.crops import Batch
from istd.data.normalisation import Normalisation
from istd.losses import SEGMENTATION_LOSSES, distillation
from istd.objectives import (
    BareOuter,
    LearnedSegmentation,
    Segmentation,
    StudentOuter,
    TeacherInner,
    outline,
    supervision,
)
from istd.students import STUDENTS, create_student, stages_of
from istd.students.base import Output, Stage, Student
from istd.teacher import SCAM, Teacher

BCE = SEGMENTATION_LOSSES["bce"]


class ThreeMaps(Student):
    """A network of three maps: the mask, a mask at half size, and an outline."""

    stages = (Stage(4, 1),)
    in_channels = 1
    outputs = (Output("mask"), Output("half", 0.25), Output("edge", 3.0, "edge"))

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(3))

    def encode(self, x: Tensor) -> list[Tensor]:
        return [self.body(x)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.heads[0](features[0])

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        (f,) = features
        return (self.heads[0](f), self.heads[1](F.avg_pool2d(f, 2)), self.heads[2](f))


class Ones(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return torch.ones(len(samples), dtype=torch.float64)


class Fixed(Ones):
    def labels(self, target: Tensor) -> Tensor:
        return 0.5 * target


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    target = (torch.rand(3, 1, 8, 8, generator=g) > 0.8).double()
    image = torch.randn(3, 1, 8, 8, generator=g, dtype=torch.float64) + target
    return Batch(image, target, torch.arange(3), torch.randn(3, 2, 4, 6, generator=g, dtype=torch.float64))


def by_hand(maps: tuple[Tensor, ...], y: Tensor) -> Tensor:
    mask, half, edge = maps
    return BCE(mask, y) + 0.25 * BCE(half, F.max_pool2d(y, 2)) + 3.0 * BCE(edge, outline(y))


def network() -> ThreeMaps:
    torch.manual_seed(0)
    return ThreeMaps().double()


def test_an_outline_by_hand():
    """Of a 3x3 square the ring inside and the one outside, without corners of the latter; its centre is level."""
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 2:5, 2:5] = 1.0
    ring = torch.zeros(7, 7)
    ring[1:6, 1:6] = 1.0
    for y in (1, 5):
        for x in (1, 5):
            ring[y, x] = 0.0
    ring[3, 3] = 0.0
    assert torch.allclose(outline(mask)[0, 0], ring, atol=2e-6)
    soft = (0.5 * mask).requires_grad_(True)
    assert torch.allclose(outline(soft)[0, 0][3, 1], torch.tensor(0.5))
    outline(soft).sum().backward()
    assert soft.grad is not None
    assert soft.grad.isfinite().all()


def test_all_maps_are_supervised_with_their_weights():
    student, b = network(), batch()
    maps = student.decode_all(student.encode(b.image))
    expected = by_hand(maps, b.target)
    assert torch.allclose(supervision(BCE, maps, b.target, student), expected)
    assert torch.allclose(Segmentation("bce")(student, Ones(), b), expected.mean())
    learned = LearnedSegmentation("bce")(student, Fixed(), b)
    assert torch.allclose(learned, by_hand(maps, 0.5 * b.target).mean())
    with pytest.raises(ValueError, match="zip"):
        supervision(BCE, maps[:2], b.target, student)


def test_the_teacher_supervises_all_maps_and_the_outer_loss_judges_the_deployed_one():
    student, b = network(), batch()
    teacher = Teacher(student, SCAM(2, 6, [4], hidden=5)).double()
    for p in teacher.adapter.parameters():
        p.data.normal_()
    features = student.encode(b.image)
    bare, taught = student.decode_all(features), teacher.decode_all(features, b.tokens)
    assert torch.equal(taught[0], teacher.decode(features, b.tokens))
    kd = distillation(taught[0], bare[0], 4.0)
    gate = 5e-3 * teacher.adapter.gate_penalty()
    expected = (by_hand(taught, b.target) + 0.1 * kd).mean() + gate
    assert torch.allclose(TeacherInner("bce", student_loss_weight=0.0)(teacher, Ones(), b), expected)
    both = TeacherInner("bce", student_loss_weight=2.0)(teacher, Ones(), b)
    assert torch.allclose(both, expected + 2 * by_hand(bare, b.target).mean())
    outer = (BCE(bare[0], b.target) + distillation(bare[0], taught[0], 4.0)).mean()
    assert torch.allclose(StudentOuter("bce")(teacher, Ones(), b), outer)
    assert torch.allclose(BareOuter("bce")(student, Ones(), b), BCE(bare[0], b.target).mean())


def test_images_get_the_channels_that_a_student_declares():
    image, constants = torch.rand(2, 1, 8, 8), torch.tensor([[0.5, 0.2]]).expand(2, 2)
    one = Normalisation(0.4, 0.2)(image, constants, 1)
    assert torch.equal(one, (image - 0.4) / 0.2)
    three = Normalisation(0.4, 0.2)(image, constants, 3)
    assert torch.equal(three, one.repeat(1, 3, 1, 1))
    assert three.stride(1) == 0  # a view
    contrast = Normalisation(0.4, 0.2, channels="contrast")
    assert contrast(image, constants).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"`channels='contrast'` gives three input channels, and the network takes 1"):
        contrast(image, constants, 1)


@pytest.mark.parametrize("name", list(STUDENTS))
def test_every_student_declares_the_maps_that_it_gives(name):
    torch.manual_seed(0)
    student = create_student(name, 0.25).eval()
    side = 32 * max(s.stride for s in stages_of(student)) // 16
    x = torch.randn(1, student.in_channels, side, side)
    with torch.no_grad():
        maps = student.decode_all(student.encode(x))
        assert torch.allclose(maps[0], student(x))
    assert len(maps) == len(student.outputs)
    assert {output.target for output in student.outputs} <= {"mask", "edge"}
    for z in maps:
        assert z.shape[:2] == (1, 1)
        assert side % z.shape[-1] == 0
    y = torch.zeros(1, 1, side, side)
    y[..., 3:6, 4:7] = 1.0
    assert np.isfinite(float(supervision(BCE, maps, y, student)))
