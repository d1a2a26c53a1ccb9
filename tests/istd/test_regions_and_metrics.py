"""Regions and metrics against independent implementations, and the cases that decide a definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label, regionprops

from istd.metrics import Characteristics, TargetScores, evaluate_by_characteristic, evaluate_masks
from istd.metrics.characteristics import irregularity, measure
from istd.regions import component_at, find_regions

masks = arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(masks)
def test_regions_equal_skimage(mask):
    regions = find_regions(mask)
    expected = regionprops(label(mask, connectivity=2))
    assert len(regions) == len(expected)
    assert sorted(regions.areas.tolist()) == sorted(int(p.area) for p in expected)
    found = sorted(map(tuple, np.round(regions.centroids, 9)))
    assert found == sorted(tuple(np.round(p.centroid, 9)) for p in expected)
    for i in range(len(regions)):
        assert regions.mask(i)[regions.boxes[i]].sum() == regions.areas[i]


def test_component_at_is_eight_connected_and_empty_on_background():
    mask = np.eye(4, dtype=bool)
    assert component_at(mask, 0, 0).sum() == 4
    assert component_at(mask, 0, 1).sum() == 0


def brute_force(pairs):
    """The released evaluation scripts, written out with skimage: first match in label order within 3 px."""
    inter = union = detected = targets = false = pixels = 0
    per_image = []
    for prediction, truth in pairs:
        i, u = (prediction & truth).sum(), (prediction | truth).sum()
        inter, union = inter + i, union + u
        per_image.append(i / u if u else 0.0)
        found = regionprops(label(prediction, connectivity=2))
        matched = 0
        for region in regionprops(label(truth, connectivity=2)):
            targets += 1
            for j, candidate in enumerate(found):
                if np.linalg.norm(np.subtract(region.centroid, candidate.centroid)) < 3:
                    matched += candidate.area
                    detected += 1
                    del found[j]
                    break
        false += prediction.sum() - matched
        pixels += prediction.size
    return {
        "IoU": inter / max(union, 1),
        "nIoU": float(np.mean(per_image)),
        "Pd": detected / max(targets, 1),
        "Fa": false / pixels,
    }


@pytest.mark.parametrize("seed", range(8))
def test_metrics_equal_an_independent_implementation(seed):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(6):
        shape = tuple(rng.integers(20, 50, 2))
        truth = rng.random(shape) > 0.985
        prediction = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) | (rng.random(shape) > 0.99)
        pairs.append((prediction, truth))
    found, expected = evaluate_masks(pairs), brute_force(pairs)
    assert found == pytest.approx(expected, rel=1e-12)


def blob(shape, row, col, size=3):
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + size, col : col + size] = True
    return mask


def test_a_matched_blob_is_forgiven_however_large_and_a_fragment_is_a_false_alarm():
    truth = blob((40, 40), 20, 20)
    large = blob((40, 40), 17, 17, 9)
    assert evaluate_masks([(large, truth)])["Fa"] == 0.0
    fragmented = blob((40, 40), 20, 20, 1) | blob((40, 40), 22, 22, 1)
    assert evaluate_masks([(fragmented, truth)]) | {"Pd": 1.0, "Fa": 1 / 1600} == evaluate_masks([(fragmented, truth)])


def test_a_false_alarm_as_large_as_the_matched_region_counts():
    """The released code of DNANet and MSHNet drops it: it compares areas instead of regions and would say 0."""
    truth = blob((40, 40), 20, 20)
    assert evaluate_masks([(truth | blob((40, 40), 3, 3), truth)]) == {
        "IoU": 0.5,
        "nIoU": 0.5,
        "Pd": 1.0,
        "Fa": 9 / 1600,
    }


def test_three_pixels_are_too_far():
    truth = blob((40, 40), 20, 20)
    assert evaluate_masks([(blob((40, 40), 20, 22), truth)])["Pd"] == 1.0
    assert evaluate_masks([(blob((40, 40), 20, 23), truth)])["Pd"] == 0.0


def test_merged_targets_count_once_and_border_targets_count():
    truth = blob((40, 40), 0, 0) | blob((40, 40), 0, 4)
    merged = blob((40, 40), 0, 0) | blob((40, 40), 0, 3, 1) | blob((40, 40), 0, 4)
    scores = evaluate_masks([(merged, truth)])
    assert scores["Pd"] == 0.5


def test_empty_masks():
    empty = np.zeros((10, 10), dtype=bool)
    assert evaluate_masks([(empty, empty)]) == {"IoU": 0.0, "nIoU": 0.0, "Pd": 0.0, "Fa": 0.0}
    assert evaluate_masks([]) == {"IoU": 0.0, "nIoU": 0.0, "Pd": 0.0, "Fa": 0.0}
    alone = TargetScores()
    alone.update(blob((10, 10), 2, 2), empty)
    assert alone.compute() == {"Pd": 0.0, "Fa": 0.09}


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="sizes must agree"):
        evaluate_masks([(np.zeros((3, 3), bool), np.zeros((3, 4), bool))])


@pytest.mark.data
def test_the_standard_split_has_its_published_target_counts(sirst):
    counts = [sum(len(find_regions(s.truth())) for s in split) for split in (sirst.train, sirst.val, sirst.test)]
    assert counts == [218, 52, 263]
    assert [len(s) for s in (sirst.train, sirst.val, sirst.test)] == [171, 42, 214]
    assert sum(len(s.points) for s in sirst.test) == 263


def scene(shape, bump, noise=0.01):
    """A 64 x 64 image with one target of the given mask and brightness, and that mask in the image."""
    rng = np.random.default_rng(0)
    truth = np.zeros((64, 64), dtype=bool)
    truth[20 : 20 + shape.shape[0], 20 : 20 + shape.shape[1]] = shape
    image = (0.3 + noise * rng.standard_normal(truth.shape) + bump * truth).astype(np.float32)
    return image, truth


@pytest.mark.parametrize(
    ("shape", "bump", "kind"),
    [
        (np.ones((3, 3), bool), 0.5, "salient"),
        (np.ones((2, 14), bool), 0.5, "filamentary"),
        (np.ones((3, 3), bool), 0.05, "faint"),
        (np.eye(9, dtype=bool), 0.05, "camouflaged"),
    ],
)
def test_the_kind_of_an_image_follows_shape_and_contrast(shape, bump, kind):
    image, truth = scene(shape, bump)
    assert Characteristics().of(image, truth) == kind
    assert Characteristics().of(1 - image, truth) == kind  # a dark target is as plain to see as a bright one
    assert Characteristics().of(image.T, truth.T) == kind


def test_irregularity_of_hand_made_shapes():
    disc = np.hypot(*(np.indices((15, 15)) - 7)) < 5.2
    assert irregularity(disc) == 0
    assert irregularity(np.pad(np.ones((3, 3), bool), 3)) == 0
    bar = np.pad(np.ones((1, 5), bool), 3)  # its disc: the centre and its four neighbours; 3 of 7 pixels in common
    assert irregularity(bar) == pytest.approx(1 - 3 / 7)


def test_contrast_is_the_ratio_to_the_deviation_around():
    image, truth = scene(np.ones((4, 4), bool), 0.4)
    rows, cols = np.indices(truth.shape)
    around = (rows >= 10) & (rows < 34) & (cols >= 10) & (cols < 34)
    around &= ~((rows >= 19) & (rows < 25) & (cols >= 19) & (cols < 25))
    expected = (image[truth].mean() - image[around].mean()) / image[around].std()
    assert measure(image, truth)[1] == pytest.approx(float(expected), rel=1e-5)
    flat = np.full((9, 9), 0.5, np.float32)
    assert measure(flat, np.eye(9, dtype=bool))[1] == 0
    assert measure(flat, np.ones((9, 9), bool))[1] == 0  # nothing around it
    assert measure(flat, np.zeros((9, 9), bool)) is None


def test_calibration_reaches_the_wanted_shares():
    rng = np.random.default_rng(1)
    samples = [scene(rng.random((7, 7)) < 0.7, bump) for bump in rng.uniform(0.02, 0.6, 40)]
    kinds = Characteristics.calibrate(samples, (1, 1, 1, 1))
    found = np.array([measure(*s) for s in samples])
    targets = np.array([label(truth, connectivity=2).max() for _, truth in samples])
    for column, threshold in ((0, kinds.irregular), (1, kinds.low)):
        share = targets[found[:, column] < threshold].sum() / targets.sum()
        assert abs(share - 0.5) <= targets.max() / targets.sum()
    with pytest.raises(ValueError, match="no target"):
        Characteristics.calibrate([(samples[0][0], np.zeros((64, 64), bool))])


@pytest.mark.data
def test_the_default_kinds_are_those_calibrated_on_sirst(sirst):
    samples = [(s.image, s.truth()) for s in (*sirst.train, *sirst.val, *sirst.test)]
    found = Characteristics.calibrate(samples)
    assert Characteristics() == Characteristics(round(found.irregular, 3), round(found.low, 1))


def test_scores_by_kind_are_those_of_the_kind_s_images():
    easy, hard = scene(np.ones((3, 3), bool), 0.5), scene(np.eye(9, dtype=bool), 0.05)
    empty = easy[0], np.zeros((64, 64), bool)
    triples = [
        (hard[1], hard[1], hard[0]),
        (np.zeros((64, 64), bool), easy[1], easy[0]),
        (empty[1], empty[1], empty[0]),
    ]
    found = evaluate_by_characteristic(triples)
    assert set(found) == {"camouflaged", "salient"}
    assert found["camouflaged"] == evaluate_masks([(hard[1], hard[1])]) | {"n_images": 1, "n_targets": 1}
    assert found["salient"]["Pd"] == 0
