"""The heat equation on a grid: against closed forms, at extreme parameters, through its gradients; and its masks."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.labels import INITIAL_MASKS, DiffusionMask, HeatDiffusion
from istd.labels.diffusion import cut_windows, diffuse, local_entropy
from istd.labels.initial import HalfMaximum
from istd.metrics import evaluate_masks
from tests.istd.tiny import mask_of


def test_a_cosine_decays_as_the_heat_equation_says():
    """Without flow through the border its eigenvalue is 2 D (1 - cos(pi k / n)); time steps are of first order."""
    n, k, d, time = 16, 2, 0.7, 1.0
    wave = torch.cos(math.pi * k * (torch.arange(n, dtype=torch.float64) + 0.5) / n).expand(1, n, n)
    exact = wave * math.exp(-2 * d * (1 - math.cos(math.pi * k / n)) * time)
    errors = [
        float((diffuse(wave, torch.full_like(wave, d), time, steps) - exact).abs().max()) for steps in (40, 80, 160)
    ]
    assert errors[0] < 1e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("time", [1e-3, 1e3])
def test_no_parameter_is_unstable(scale, time):
    """Conductivities over six orders of magnitude side by side: heat is conserved and stays within its range.

    Rounding: the systems hold flows of up to dt D = 3e8 beside 1, so 1e-16 becomes 3e-8 a step and axis.
    """
    g = torch.Generator().manual_seed(0)
    heat = torch.rand(2, 31, 31, generator=g, dtype=torch.float64)
    conductivity = scale * 10 ** torch.empty(2, 31, 31, dtype=torch.float64).uniform_(-3, 3, generator=g)
    out = diffuse(heat, conductivity, time, steps=3)
    assert torch.allclose(out.sum((1, 2)), heat.sum((1, 2)), rtol=1e-6)
    assert out.min() >= heat.min() - 1e-6
    assert out.max() <= heat.max() + 1e-6


def test_heat_does_not_cross_a_wall():
    heat, conductivity = torch.zeros(1, 9, 9), torch.ones(1, 9, 9)
    heat[0, 4, 1], conductivity[0, :, 4] = 1.0, 1e-12
    out = diffuse(heat, conductivity, 100.0, 20)
    assert out[0, :, 5:].sum() < 1e-6
    assert out[0, :, :4].std() < 1e-3  # even on its own side


def test_gradients_of_all_four_numbers_against_finite_differences():
    model = HeatDiffusion(steps=3).double()
    contrast = torch.rand(2, 11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    region = (contrast > 0.5).double()
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]

    def masks(*p):
        return torch.func.functional_call(model, dict(zip(names, p, strict=True)), (contrast, region))

    assert torch.autograd.gradcheck(masks, values)
    grads = torch.autograd.grad(masks(*values).square().sum(), values)
    assert all(g.abs() > 1e-6 for g in grads)


def test_entropy_is_zero_where_nothing_varies_and_one_where_all_bins_are_full():
    assert float(local_entropy(torch.full((1, 7, 7), 0.4)).abs().max()) < 1e-6
    bins = torch.arange(8).repeat(8)[:25].reshape(1, 5, 5) / 8 + 0.05
    shares = np.bincount((np.arange(25) % 8), minlength=8) / 25
    assert float(local_entropy(bins)[0, 2, 2]) == pytest.approx(-(shares * np.log2(shares)).sum() / 3, rel=1e-5)


def test_masks_are_drawn_from_points_alone_at_every_border():
    scenes = synthetic_dataset(20, 1, 1, SceneConfig(size=96)).train
    rule = INITIAL_MASKS["diffusion"]
    found = evaluate_masks([(rule(s).mask, s.truth()) for s in scenes])
    assert found["IoU"] > 0.6
    assert found["Pd"] > 0.9
    image = np.full((40, 50), 0.2, dtype=np.float32)
    corners = np.array([[0, 0], [39, 49], [0, 25]])
    for row, col in corners:
        image[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] = 0.9
    drawn = mask_of(rule, image, corners)
    assert drawn.mask.shape == image.shape
    assert drawn.mask[tuple(corners.T)].all()
    assert drawn.mask.sum() < 60
    assert drawn.reliable.all()
    assert not mask_of(rule, image, np.zeros((0, 2), dtype=np.int64)).mask.any()


def test_a_flat_window_gives_a_small_doubtful_mask():
    drawn = mask_of(INITIAL_MASKS["diffusion"], np.full((40, 40), 0.5, dtype=np.float32), np.array([[20, 20]]))
    assert drawn.mask.sum() == 9
    assert not drawn.reliable[0]


def test_batched_targets_equal_single_ones():
    scene = next(s for s in synthetic_dataset(30, 1, 1, SceneConfig(size=96)).train if len(s.points) > 1)
    model = HeatDiffusion()
    found = cut_windows(scene.image, scene.points, 15, HalfMaximum())
    together = model(torch.from_numpy(found.contrast), torch.from_numpy(found.region))
    for i in range(len(scene.points)):
        alone = model(torch.from_numpy(found.contrast[i : i + 1]), torch.from_numpy(found.region[i : i + 1]))
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    assert DiffusionMask(model)(scene).mask.any()


@pytest.mark.parametrize("bad", [{"conductivity": 0.0}, {"stopping": -1.0}, {"balance": 1.0}, {"mixing": 0.0}])
def test_impossible_parameters_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"`{name}` must"):
        HeatDiffusion(**bad)
