"""The baselines: their losses, label rules and start masks against cases worked by hand, and whole small runs."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.segmentation import slic
from skimage.util import random_noise

from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.inference.export import load_student
from istd.labels import (
    INITIAL_MASKS,
    DenseCRF,
    LabelEvolution,
    Labels,
    LabelUpdates,
    MonteCarloClustering,
    PseudoMasks,
    UpdateSchedule,
    with_crf,
)
from istd.losses import edge_ohem, soft_focal
from istd.metrics import HolisticScore, evaluate_masks
from istd.runs.run import run
from istd.students import create_student, inference_form
from istd.teacher import SAMF
from istd.teacher.samf import FusionBlock
from istd.training.experiment import Experiment
from istd.training.presets import configure
from tests.istd.tiny import mask_of, settings

pytestmark = pytest.mark.slow

SMALL = {"student": "mlcl", "width": 0.25, "crop": 32, "batch_size": 4, "epochs": 6, "evaluate_every": 3}


def logit(p):
    return math.log(p / (1 - p))


def test_edge_ohem_by_hand():
    """A 3x3 label in 5x5: eight boundary pixels count four times, and the losses from the median on are averaged."""
    target = torch.zeros(1, 1, 5, 5)
    target[0, 0, 1:4, 1:4] = 1.0
    logits = torch.full((1, 1, 5, 5), logit(0.1))  # background costs -log 0.9, foreground -log 0.1
    easy, hard = -math.log(0.9), -math.log(0.1)
    # 25 losses: 16 easy, 1 hard (inside), 8 at 4 hard; the median is easy, so all are kept.
    expected = (16 * easy + hard + 8 * 4 * hard) / 25
    assert float(edge_ohem(logits, target)) == pytest.approx(expected, rel=1e-5)
    logits[0, 0, 0, :] = logit(0.01)  # 5 pixels drop below the median
    assert float(edge_ohem(logits, target)) == pytest.approx((11 * easy + hard + 32 * hard) / 20, rel=1e-5)


def test_soft_focal_by_hand():
    """y = 1, 1/2 and 0 at p = 1/2: 1/4 log 2 [1 + 0, 1/2 + 1/16, 0 + 1], over one certain pixel."""
    target = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    expected = 0.25 * math.log(2) * (1 + 0.5 + 1 / 16 + 1)
    assert float(soft_focal(torch.zeros(1, 1, 1, 3), target)) == pytest.approx(expected, rel=1e-5)
    none = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
    assert float(soft_focal(torch.zeros(1, 1, 1, 2), none)) == pytest.approx(
        0.25 * math.log(2) * 2 * (9 / 16), rel=1e-5
    )


def published(name):
    return configure("paper", name).evolution


@pytest.mark.parametrize(("name", "averaged", "faded"), [("lesps", 53, 153), ("pal", 54, 148)])
def test_label_rules_by_hand(name, averaged, faded):
    """100x100: L = 15 pixels. A region of one pixel with m = 0.8: thr = 0.4 + 0.2 / 15 = 0.4133.

    In 8 bits: 0.42 / 2 * 255 = 53.55 and 0.6 * 0.97 * 255 = 148.41, cut by LESPS and rounded by PAL.
    """
    label, prediction = np.zeros((100, 100), dtype=np.float32), np.zeros((100, 100), dtype=np.float32)
    label[50, 50] = 1.0
    label[10, 10] = 0.6  # a region of its own whose window holds no response at its centre
    prediction[50, 50:53] = 0.8, 0.42, 0.41
    new = 255 * published(name)(label, prediction, np.array([[50, 50]]))
    assert new[50, 50] == 255
    assert new[50, 51] == pytest.approx(averaged)
    assert new[50, 52] == 0.0
    assert new[10, 10] == pytest.approx(faded)


def test_methods_bring_their_constants_and_flags_win():
    pal = configure("cpu", "pal")
    assert (pal.labels.rule, pal.loss, pal.admission.max_false_components) == ("canny", "edge-ohem", 5.0)
    assert pal.updates.every == 5  # its source's, not the preset's
    assert pal.schedule.epochs == configure("cpu").schedule.epochs == 140  # the same budget
    assert configure("cpu", "pal", loss="bce").loss == "bce"
    with pytest.raises(ValueError, match="Unknown method 'pall'"):
        configure("cpu", "pall")


def test_points_alone_start_with_the_points():
    points = np.array([[3, 4], [10, 2]])
    mask = mask_of(INITIAL_MASKS["points"], np.zeros((16, 16), dtype=np.float32), points).mask
    assert sorted(map(tuple, np.argwhere(mask).tolist())) == [(3, 4), (10, 2)]
    empty = mask_of(INITIAL_MASKS["points"], np.zeros((16, 16), dtype=np.float32), np.zeros((0, 2), dtype=np.int64))
    assert not empty.mask.any()


def test_monte_carlo_superpixels_find_bright_targets_and_repeat():
    scenes = synthetic_dataset(6, 1, 1, SceneConfig(size=96)).train
    rule = MonteCarloClustering(repeats=20)
    masks = [rule(s).mask for s in scenes]
    found = evaluate_masks([(m, s.truth()) for m, s in zip(masks, scenes, strict=True)])
    square = evaluate_masks([(INITIAL_MASKS["square"](s).mask, s.truth()) for s in scenes])
    assert found["nIoU"] > 0.25
    assert found["Pd"] > 0.5
    assert square["IoU"] > 0  # the comparison exists
    assert np.array_equal(masks[0], rule(scenes[0]).mask)


def test_salt_hits_each_channel_alone():
    """A pixel changes where one of its three values does: 1 - 0.95^3 = 14.26 % (120,000 pixels: sd 0.1 %)."""
    window = np.full((300, 400), 0.5, dtype=np.float32)
    salted = MonteCarloClustering().salted(window, np.random.default_rng(0))
    assert salted.shape == (300, 400, 3)
    assert set(np.unique(salted)) == {0.5, 1.0}
    assert (salted == 1).mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 360_000))
    assert (salted == 1).any(axis=2).mean() == pytest.approx(1 - 0.95**3, abs=0.004)


def test_salt_is_that_of_the_library_the_release_calls():
    """Its first draws are the same; later ones are not, since it draws as many again to choose salt or pepper."""
    window = np.random.default_rng(1).random((17, 15)).astype(np.float32)
    ours = MonteCarloClustering().salted(window, np.random.default_rng(2))
    colour = np.repeat(window[..., None].astype(np.float64), 3, axis=2)
    assert np.array_equal(ours, random_noise(colour, mode="salt", amount=0.05, rng=np.random.default_rng(2)))


def published_mclc(image, points, rule):
    """Read off the release: per copy one map of 255 where a target's superpixel lies, the sum of the copies divided by
    its maximum in each window, the likelier class there, windows written one after another (without its CRF)."""
    draws = [np.random.default_rng((rule.seed, row, col)) for row, col in points.tolist()]
    boxes = [
        [slice(max(x - rule.half, 0), min(x + rule.half + 1, n)) for x, n in zip(point, image.shape, strict=True)]
        for point in points.tolist()
    ]
    total = np.zeros(image.shape, dtype=np.float32)
    for _ in range(rule.repeats):
        copy = np.zeros(image.shape, dtype=np.float32)
        for (row, col), (rows, cols), rng in zip(points.tolist(), boxes, draws, strict=True):
            parts = slic(rule.salted(image[rows, cols], rng), n_segments=9, compactness=20)
            for y, x in np.argwhere(parts == parts[row - rows.start, col - cols.start]):
                copy[rows.start + y, cols.start + x] = 255
        total += copy
    result = np.zeros(image.shape, dtype=bool)
    for rows, cols in boxes:
        target = total[rows, cols] / total[rows, cols].max()
        result[rows, cols] = np.argmax(np.stack([1 - target, target]), axis=0)
    return result


def test_monte_carlo_is_the_published_rule_for_one_target_for_two_that_overlap_and_at_the_border():
    rng = np.random.default_rng(3)
    image = (0.3 + 0.05 * rng.standard_normal((40, 48))).clip(0, 1).astype(np.float32)
    for row, col in ((12, 14), (18, 22), (1, 46)):
        image[max(row - 1, 0) : row + 2, max(col - 2, 0) : col + 3] = 0.9
    rule = MonteCarloClustering(repeats=8)
    alone = mask_of(rule, image, np.array([[18, 22]])).mask
    for points in ([[18, 22]], [[12, 14], [18, 22]], [[18, 22], [12, 14]], [[1, 46], [39, 0]]):
        assert np.array_equal(
            mask_of(rule, image, np.array(points)).mask, published_mclc(image, np.array(points), rule)
        ), points
    assert alone[17:20, 20:25].all()
    assert alone.sum() < 40
    assert not mask_of(rule, image, np.zeros((0, 2), dtype=np.int64)).mask.any()


def test_only_rules_whose_source_has_a_crf_take_one():
    assert with_crf(INITIAL_MASKS["monte-carlo"]).crf == DenseCRF((32, 13, 10), (3, 3), 1)
    assert with_crf(INITIAL_MASKS["diffusion"]).crf == DenseCRF((8, 10, 110), None, 5)
    with pytest.raises(ValueError, match="'monte-carlo' and 'diffusion'"):
        with_crf(INITIAL_MASKS["half-maximum"])


def test_without_its_extra_the_crf_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ModuleNotFoundError, match=r"bilevel-istd\[crf\]"):
        DenseCRF((8, 10, 110))(np.zeros((4, 4)), np.zeros((4, 4), np.float32))


def test_the_crf_follows_edges_and_keeps_what_is_certain():
    """A certain half of a bright square pulls the undecided other half along; dark pixels stay background."""
    pytest.importorskip("pydensecrf", reason="needs the extra `crf` (pydensecrf2)")
    image = np.full((16, 16), 0.2, np.float32)
    image[5:11, 5:11] = 0.8
    belief = np.full((16, 16), 0.1)
    belief[5:11, 5:8], belief[5:11, 8:11] = 0.95, 0.5
    assert np.array_equal(DenseCRF((8, 10, 110), iterations=5)(belief, image), image > 0.5)
    # No iteration: the likelier class of each pixel alone; equal chances are background.
    assert np.array_equal(DenseCRF((8, 10, 110), iterations=0)(belief, image), belief > 0.5)


def test_start_masks_with_a_crf():
    pytest.importorskip("pydensecrf", reason="needs the extra `crf` (pydensecrf2)")
    scenes = synthetic_dataset(6, 1, 1, SceneConfig(size=64)).train
    for name in ("monte-carlo", "diffusion"):
        rule = with_crf(INITIAL_MASKS[name])
        found = evaluate_masks([(rule(s).mask, s.truth()) for s in scenes])
        assert found["IoU"] > 0.3
        assert not mask_of(rule, scenes[0].image, np.zeros((0, 2), dtype=np.int64)).mask.any()


@pytest.mark.parametrize("method", ["diffuse-to-detect", "lesps", "pal", "mclc"])
def test_baselines_train_from_points(method):
    scenes = synthetic_dataset(10, 4, 2, SceneConfig(size=64))
    hidden = replace(
        scenes, **{s: tuple(replace(x, mask_source=None) for x in getattr(scenes, s)) for s in ("train", "val")}
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    experiment = Experiment(
        settings("smoke", method, **SMALL, updates__start=0.2, outer__every=2), hidden, progress=False
    )
    experiment.fit()
    torch.set_num_threads(before)
    assert experiment.parts.vision is None
    assert all(math.isfinite(entry["inner_loss"]) for entry in experiment.trainer.history)
    assert experiment.best.best["score"] >= 0
    assert any("label_change" in entry for entry in experiment.trainer.history) == (method != "mclc")
    learned = [p for p in experiment.parts.weights.parameters() if p.abs().sum() > 0]
    assert bool(learned) == (method == "diffuse-to-detect")


@pytest.mark.parametrize(
    ("method", "epochs"), [("lesps", (38, 300)), ("pal", (60, 300)), ("semantic-priors", (60, 240))]
)
def test_labels_evolve_when_their_source_lets_them(method, epochs):
    """Of 300 epochs (LESPS: from an eighth, PAL: from a fifth, both to the end; ours: from a fifth to four fifths)."""
    scenes = synthetic_dataset(4, 2, 1, SceneConfig(size=64))
    changes = {**SMALL, "epochs": 300, "vfm__name": "vit_tiny_patch16_224", "vfm__random": True, "vfm__size": 64}
    experiment = Experiment(settings("paper", method, **changes), scenes, progress=False)
    (updates,) = (hook for hook in experiment.trainer.callbacks if isinstance(hook, LabelUpdates))
    schedule = updates.schedule
    assert (schedule.first, schedule.last) == epochs
    assert schedule.admit_until == 240
    assert schedule.every == 5


def test_admission_ends_while_labels_go_on():
    """Epochs 2, 4, 6 of 6, admission until 4: the tolerance is 0.2 at 2 and 1 at 4, and at 6 nobody enters any more."""
    scenes = synthetic_dataset(3, 1, 1, SceneConfig(size=64, targets=(1, 1)))
    masks = PseudoMasks.draw(scenes.train, INITIAL_MASKS["points"])
    labels = Labels(replace(masks, admitted=np.array([True, False, False])))
    asked, nothing = [], np.zeros((64, 64), dtype=np.float32)

    class Admission:
        def __call__(self, prediction, points, progress):
            asked.append(progress)

    schedule = UpdateSchedule(2, 2, 6, 4, (2, 4))
    updates = LabelUpdates(labels, lambda i: nothing, LabelEvolution(relative=False), Admission(), schedule)
    for epoch in range(1, 8):
        updates.on_epoch_end(None, epoch, {})
    assert asked == [0.0, 0.0, 1.0, 1.0]


def test_soft_labels_reach_the_loss_as_they_are():
    scenes = synthetic_dataset(4, 2, 1, SceneConfig(size=64))
    experiment = Experiment(settings("smoke", "lesps", **SMALL), scenes, progress=False)
    labels = experiment.parts.labels
    labels.now = labels.now.replaced({i: np.full_like(m, 0.3) for i, m in enumerate(labels.now.soft)})
    batch = next(iter(experiment.trainer.inner_batches))
    assert torch.allclose(batch.target, torch.full_like(batch.target, 0.3))


def features_and_tokens(side=3):
    torch.manual_seed(0)
    return [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)], torch.randn(2, 8, side * side, 5)


def test_samf_starts_as_the_identity_and_learns_in_all_its_parts():
    features, tokens = features_and_tokens()
    module = SAMF(8, 5, (4, 6))
    assert module.chosen == [1, 3, 5, 7]
    assert SAMF(12, 5, (4, 6)).chosen == [2, 5, 8, 11]
    assert all(torch.equal(a, b) for a, b in zip(features, module(features, tokens), strict=True))
    for p in module.parameters():
        p.data.normal_(std=0.3)
    out = module(features, tokens)
    assert torch.equal(out[0], features[0])
    out[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_fusion_block_is_its_formula():
    torch.manual_seed(0)
    block, x, d = FusionBlock(4, 3), torch.randn(1, 4, 5, 5), torch.randn(1, 3, 5, 5)
    for p in block.parameters():
        p.data.normal_()
    times, plus = block.times(d), block.plus(d)
    y = torch.cat([block.after_times(x[:, :2] * times), block.after_plus(x[:, 2:] + plus)], dim=1)
    assert torch.allclose(block(x, d), block.out(y + x), atol=1e-5)


def test_semantic_maps_are_fused_where_they_lie():
    """A token changes the features above it and, but for the reach of three 3x3 convolutions a block, no others."""
    torch.manual_seed(0)
    module = SAMF(1, 5, (4,), blocks=1)
    for p in module.parameters():
        p.data.normal_(std=0.3)
    x, tokens = [torch.zeros(1, 4, 32, 32)], torch.randn(1, 1, 64, 5)
    other = tokens.clone()
    other[0, 0, 0] += 1.0  # the upper left of an 8x8 grid: 4x4 pixels, and bilinear weights reach 2 more
    change = (module(x, tokens)[0] - module(x, other)[0]).abs().amax(1)[0]
    assert change[:4, :4].max() > 0
    assert change[9:].max() == change[:, 9:].max() == 0


def test_samf_names_what_does_not_fit():
    features, tokens = features_and_tokens()
    with pytest.raises(ValueError, match="7 places, which is no square grid"):
        SAMF(8, 5, (4, 6))(features, tokens[:, :, :7])
    with pytest.raises(ValueError, match=r"\(4, 6\) channels; this SAMF was built for \(4, 8\)"):
        SAMF(8, 5, (4, 8))(features, tokens)


@pytest.mark.parametrize("labels", ["pseudo", "true"])
def test_fdep_trains_both_branches_and_deploys_the_light_one(labels, tmp_path):
    scenes = synthetic_dataset(8, 4, 2, SceneConfig(size=64))
    config = settings("smoke", "fdep", **SMALL | {"epochs": 2}, labels__train=labels)
    metrics = run(config, scenes, tmp_path, progress=False)
    assert metrics["train_labels"] == labels
    assert (metrics["pseudo_masks"]["initial"]["IoU"] == 1.0) is (labels == "true")
    assert metrics["pseudo_masks"]["initial"] == metrics["pseudo_masks"]["final"]
    assert metrics["teacher"] is not None
    light = load_student(tmp_path / "student.safetensors")
    bare = inference_form(create_student("mlcl", 0.25))
    assert sum(p.numel() for p in light.student.parameters()) == sum(p.numel() for p in bare.parameters())


def test_samf_refuses_tokens_that_do_not_align():
    scenes = synthetic_dataset(4, 2, 1, SceneConfig(size=64))
    with pytest.raises(ValueError, match=r"`vfm\.view` must be 'crop' or 'aligned'"):
        Experiment(settings("smoke", "fdep", **SMALL, vfm__view="image"), scenes, progress=False)


def test_the_holistic_score_by_hand():
    """One target of 2 pixels predicted at 0.7, one false pixel at 0.3, a shift of the centroid by 0.5."""
    truth = np.zeros((12, 12), dtype=bool)
    truth[5, 5:7] = True
    p = np.zeros((12, 12), dtype=np.float32)
    p[5, 5:8] = 0.7  # centroid 0.5 to the right
    p[0, 0] = 0.3
    score = HolisticScore(thresholds=(0.2, 0.5), distances=(0.4, 3.0))
    score.update(p, truth)
    found = score.compute()
    assert found["pixels"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    # t = 0.2: 2 regions and 1 target, F1 = 0 and 2/3; t = 0.5: 1 and 1, F1 = 0 and 1.
    assert found["targets"] == pytest.approx((0 + 2 / 3 + 0 + 1) / 4)
    assert found["score"] == pytest.approx((found["pixels"] + found["targets"]) / 2)
    perfect = HolisticScore()
    perfect.update(truth.astype(np.float32), truth)
    assert perfect.compute() == {"score": 1.0, "pixels": 1.0, "targets": 1.0}
    empty = HolisticScore()
    empty.update(np.zeros((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=bool))
    assert empty.compute()["score"] == 0.0
    with pytest.raises(ValueError, match="`weight` must lie"):
        HolisticScore(weight=2.0)
