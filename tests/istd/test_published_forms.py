"""What diffuse-to-detect published, beside what is made of it here: particles, aligned outputs, told areas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bilevel.modules import parameters_of, problem_from_modules
from bilevel.reweighting import TableWeights
from istd.data.crops import Batch
from istd.data.layouts import Sample
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.labels import INITIAL_MASKS, AreaPrior, InitialMask, ParticleDiffusion
from istd.labels.leak import CLASSES, PADDING
from istd.metrics import evaluate_masks
from istd.objectives import BareOuter, Segmentation
from istd.runs.run import run
from istd.training.experiment import Experiment
from istd.weights.alignment import OutputAlignment
from tests.istd.tiny import settings

pytestmark = pytest.mark.slow

TINY = {"width": 0.25, "crop": 32, "batch_size": 4, "student": "mlcl", "epochs": 2, "evaluate_every": 1}


@pytest.fixture(scope="module")
def scenes():
    return synthetic_dataset(8, 4, 2, SceneConfig(size=64))


def test_free_particles_spread_as_the_heat_equation_says():
    """Without gradients and entropy: variance 2 D t along an axis, 1/2 of the smoothing, 1/12 of the pixels.

    4000 particles: the variance of a normal sample has a relative deviation of sqrt(2 / 4000) = 2 %; four of them.
    """
    d, t, n = 0.25, 8.0, 31
    heat = ParticleDiffusion(conductivity=d, time=t, particles=4000).double().heat(torch.zeros(1, n, n).double())[0]
    place = torch.arange(n, dtype=torch.float64) - n // 2
    for axis in (0, 1):
        line = heat.sum(1 - axis)
        variance = float((line * place**2).sum() / line.sum())
        assert variance == pytest.approx(2 * d * t + 0.5 + 1 / 12, rel=0.09)


def test_particles_are_seeded_and_do_not_know_their_neighbours():
    contrast = torch.rand(3, 15, 15, generator=torch.Generator().manual_seed(0))
    model = ParticleDiffusion()
    both = model.heat(contrast)
    assert torch.equal(both, model.heat(contrast))
    assert torch.equal(both[1:2], model.heat(contrast[1:2]))
    assert not torch.equal(both, ParticleDiffusion(seed=1).heat(contrast))
    assert both.amax((1, 2)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="`particles`"):
        ParticleDiffusion(particles=0)


def test_particle_masks_resemble_those_of_the_grid(scenes):
    pairs = [
        (
            INITIAL_MASKS["diffusion-particles"](s).mask,
            INITIAL_MASKS["diffusion"](s).mask,
        )
        for s in scenes.train
    ]
    assert evaluate_masks(pairs)["IoU"] > 0.6


def test_a_known_area_bounds_what_a_rule_sees_and_draws():
    seen = []

    def everything(sample):
        seen.append(sample.image.shape)
        return InitialMask(np.ones(sample.image.shape, dtype=bool), np.ones(len(sample.points), dtype=bool))

    image, truth = np.zeros((120, 120), np.float32), np.zeros((120, 120), dtype=bool)
    places = ((20, 20, 1), (60, 60, 3), (60, 20, 6))  # areas 9, 49 and 169: a point, a spot, an extended target
    for row, col, reach in places:
        truth[row - reach : row + reach + 1, col - reach : col + reach + 1] = True
    for (row, col, _), (_, half) in zip(places, CLASSES, strict=True):
        mask = AreaPrior(everything)(Sample("", image, np.array([[row, col]]), truth)).mask
        rows, cols = np.nonzero(mask)
        assert (rows.min(), cols.min()) == (max(row - half, 0), max(col - half, 0))
        assert rows.max() == row + half
        assert seen[-1][0] == min(row, half + PADDING) + 1 + half + PADDING


def test_runs_that_know_areas_say_so(scenes, tmp_path):
    config = settings("smoke", "plain", **TINY, labels__leaks_mask_area=True, labels__rule="diffusion")
    assert run(config, scenes, tmp_path / "run", progress=False)["leaks_mask_area"] is True
    blind = tuple(Sample(s.name, s.image, s.points) for s in scenes.train)
    with pytest.raises(ValueError, match="has none"):
        Experiment(config, replace(scenes, train=blind), progress=False)


def test_alignment_by_hand():
    """One pixel, a linear student: P = 1/2, so errors +-1/2 by label; who errs like validation gains."""
    student, weights = nn.Conv2d(3, 1, 1), TableWeights.per_sample(3)
    nn.init.zeros_(student.weight)
    nn.init.zeros_(student.bias)
    train = Batch(torch.zeros(3, 3, 1, 1), torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1), torch.arange(3), None)
    val = Batch(torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, 1), torch.zeros(1).long(), None)
    problem = problem_from_modules(student, weights, Segmentation("bce"), BareOuter("bce"))
    trees = parameters_of(student), parameters_of(weights)
    found = OutputAlignment(student, weights)(problem, *trees, [train], val)
    # products of errors (1/4, 1/4, -1/4), cut at 0, z-scored; weights exp(x_i) / mean: d(mean w s)/dx_i = s_i / 3
    score = torch.tensor([0.25, 0.25, 0.0])
    score = (score - score.mean()) / score.std()
    torch.testing.assert_close(found.value["logits"], -0.25 * score / 3)
    assert not found.indirect["logits"].any()
    assert float(found.outer_loss) == pytest.approx(np.log(2))
    expected = torch.autograd.grad(BareOuter("bce")(student, weights, val), list(student.parameters()))
    for value, wanted in zip(found.inner_gradient.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_the_published_update_trains(scenes):
    config = settings(
        "smoke", "diffuse-to-detect", **TINY, outer__hypergradient="output-alignment", outer__every=1, outer__steps=1
    )
    experiment = Experiment(config, scenes, progress=False)
    before = [p.detach().clone() for p in experiment.parts.weights.parameters()]
    buffers = {n: b.clone() for n, b in experiment.parts.network.named_buffers()}
    experiment.trainer.outer_step(
        list(experiment.trainer.inner_batches)[:1], next(iter(experiment.trainer.outer_batches))
    )
    assert all(torch.equal(b, buffers[n]) for n, b in experiment.parts.network.named_buffers())
    experiment.fit()
    assert any(not torch.equal(a, b) for a, b in zip(before, experiment.parts.weights.parameters(), strict=True))
