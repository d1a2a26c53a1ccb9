"""Labels as functions of learned numbers: their derivatives, alone and through crops, and runs that learn them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from istd.data.crops import Augmentation, Batch, CropLoader
from istd.data.layouts import Sample
from istd.data.normalisation import Normalisation
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.labels import DiffusedLabels, DiffusionMask, HeatDiffusion, LearnedLabels, point_maps
from istd.labels.learned import labels_and_slopes
from istd.objectives import PointOuter
from istd.training.experiment import Experiment
from tests.istd.tiny import settings

pytestmark = pytest.mark.slow

TINY = {"width": 0.25, "crop": 32, "batch_size": 4, "student": "mlcl", "epochs": 4, "evaluate_every": 2}


@pytest.fixture(scope="module")
def scenes():
    return synthetic_dataset(8, 4, 2, SceneConfig(size=64))


def moved(model, k, step):
    """The same diffusion with one number moved."""
    other = HeatDiffusion(time=model.time, steps=model.steps).to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        list(other.parameters())[k].add_(step)
    return other


def test_slopes_are_finite_differences():
    model = HeatDiffusion(steps=3).double()
    g = torch.Generator().manual_seed(0)
    contrast, region = (torch.rand(2, 15, 15, generator=g, dtype=torch.float64) for _ in range(2))
    _, slopes = labels_and_slopes(model, contrast, region)
    for k in range(4):
        high, low = (labels_and_slopes(moved(model, k, s), contrast, region)[0] for s in (1e-5, -1e-5))
        torch.testing.assert_close(slopes[:, k], (high - low) / 2e-5, rtol=1e-5, atol=1e-8)


def test_fresh_labels_are_the_rule_s_masks(scenes):
    model = HeatDiffusion()
    masks = DiffusedLabels(scenes.train, model)
    rule = DiffusionMask(model)
    for i, sample in enumerate(scenes.train):
        assert np.array_equal(masks.hard(i), rule(sample).mask)
        assert np.array_equal(masks.now.start[i], masks.hard(i))
    other = DiffusedLabels(scenes.train, HeatDiffusion(stopping=8.0, mixing=0.75))
    other.model.load_state_dict(model.state_dict())
    other.redraw()
    for i in range(len(masks.now)):
        np.testing.assert_allclose(other.maps(i), masks.maps(i), atol=1e-6)


def test_fixed_labels_stay_and_have_no_slope(scenes):
    masks = DiffusedLabels(scenes.train, HeatDiffusion())
    square = np.zeros((64, 64), dtype=bool)
    square[3:6, 3:6] = True
    masks.fix(np.array([2]), [square])
    with torch.no_grad():
        masks.model.log_stopping.add_(1.0)
    masks.redraw()
    assert np.array_equal(masks.hard(2), square)
    assert not masks.tangents[2].any()
    assert masks.tangents[1].any()


def test_state_brings_back_labels_and_numbers(scenes):
    masks = DiffusedLabels(scenes.train, HeatDiffusion())
    with torch.no_grad():
        masks.model.mixing_logit.add_(0.3)
    masks.redraw()
    other = DiffusedLabels(scenes.train, HeatDiffusion())
    other.load_state_dict(masks.state_dict())
    assert torch.equal(other.model.mixing_logit, masks.model.mixing_logit)
    for i in range(len(masks.now)):
        np.testing.assert_array_equal(other.maps(i), masks.maps(i))


def test_the_derivative_of_a_loss_on_crops_is_that_of_labels_drawn_anew(scenes):
    """d/dt of sum(c * label) over turned, zoomed crops, against central differences of whole redrawn labels.

    Labels are float32 and zoomed: differences at a step of 0.02 carry an error of its square beside rounding.
    """
    model = HeatDiffusion()

    def batch_of(diffusion):
        masks = DiffusedLabels(scenes.train, diffusion)
        loader = CropLoader(
            scenes.train,
            masks.maps,
            lambda: np.arange(len(scenes.train)),
            batch_size=8,
            augmentation=Augmentation(48, 1.0, 1.3),
            normalisation=Normalisation(0.4, 0.2),
        )
        return next(iter(loader)).target

    labels = LearnedLabels(model)
    fresh = batch_of(model)
    weight = torch.rand(fresh[:, :1].shape, generator=torch.Generator().manual_seed(1))
    assert fresh.shape == (8, 5, 48, 48)
    assert torch.equal(labels(fresh), fresh[:, :1])
    found = torch.autograd.grad((weight * labels(fresh)).sum(), list(model.parameters()))
    for k, slope in enumerate(found):
        high, low = ((weight * batch_of(moved(model, k, s))[:, :1]).sum() for s in (0.02, -0.02))
        assert float(slope) == pytest.approx(float(high - low) / 0.04, rel=0.02, abs=0.02)


def test_a_run_learns_the_numbers_and_draws_its_labels_anew(scenes, tmp_path):
    config = settings("smoke", "diffuse-to-detect", **TINY, outer__every=1, outer__steps=2, diffusion_lr=0.1)
    whole = Experiment(config, scenes, progress=False)
    start = whole.parts.labels.model.readable()
    whole.fit()
    assert all(whole.parts.labels.model.readable()[name] != value for name, value in start.items())
    assert whole.trainer.history[-1]["beta"] == pytest.approx(whole.parts.labels.model.readable()["beta"])
    assert any(entry["label_change"] > 0 for entry in whole.trainer.history)
    for i in whole.context.validation:
        assert np.array_equal(whole.parts.labels.hard(i), whole.parts.labels.now.start[i])

    first = Experiment(config, scenes, checkpoint=tmp_path / "c.pt", progress=False)
    first.trainer.fit(2)
    second = Experiment(config, scenes, checkpoint=tmp_path / "c.pt", progress=False)
    assert second.trainer.resume()
    second.trainer.fit(4)
    for name in ("inner_loss", "outer_loss", "label_change", "beta"):
        assert [e[name] for e in second.trainer.history] == [e[name] for e in whole.trainer.history]


def test_numbers_stay_where_they_are_not_to_be_learned(scenes):
    for changes in ({"diffusion_lr": 0.0}, {"labels__rule": "half-maximum"}):
        experiment = Experiment(settings("smoke", "diffuse-to-detect", **TINY | changes), scenes, progress=False)
        assert not isinstance(experiment.parts.labels, DiffusedLabels)


@pytest.mark.parametrize("method", ["diffuse-to-detect", "semantic-priors"])
def test_points_alone_can_judge(scenes, method):
    config = settings("smoke", method, **TINY, outer__labels="points", outer__every=1, outer__steps=1, vfm__size=32)
    experiment = Experiment(config, scenes, progress=False)
    experiment.fit()
    assert np.isfinite(experiment.trainer.history[-1]["outer_loss"])
    batch = next(iter(experiment.trainer.outer_batches))
    assert batch.target.shape[1] == 2


def test_the_loss_of_points_by_hand():
    maps = torch.from_numpy(point_maps((64, 64), np.array([[20, 30]])))
    at, counted = maps
    assert at.sum() == 9
    assert counted[20, 30] == 1
    assert counted[20, 40] == 0  # it may be the target's
    assert counted[20, 46] == 1
    logits = torch.zeros(1, 1, 64, 64, requires_grad=True)
    batch = Batch(torch.zeros(1, 1, 64, 64), maps[None], torch.zeros(1).long(), None)
    loss = PointOuter()(SimpleNamespace(student=lambda x: logits), None, batch)
    assert loss.item() == pytest.approx(2 * np.log(2), rel=1e-6)
    loss.backward()
    assert float(logits.grad[0, 0, 20, 30]) == pytest.approx(-0.5 / 9)
    assert float(logits.grad[0, 0, 20, 40]) == 0
    assert float(logits.grad[0, 0, 60, 60]) == pytest.approx(0.5 / float(counted.sum() - 9))
    empty = Batch(batch.image, torch.from_numpy(point_maps((64, 64), np.zeros((0, 2), int)))[None], batch.index, None)
    assert PointOuter()(SimpleNamespace(student=lambda x: logits), None, empty).item() == pytest.approx(
        np.log(2), rel=1e-6
    )


def test_a_sample_without_points_has_an_empty_label():
    sample = Sample("empty", np.full((40, 40), 0.5, np.float32), np.zeros((0, 2), dtype=np.int64))
    masks = DiffusedLabels([sample], HeatDiffusion())
    assert not masks.maps(0).any()
