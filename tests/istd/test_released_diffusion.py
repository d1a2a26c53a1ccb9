"""The released annotation of diffuse-to-detect: its parts by hand, and a case whose numbers its own code gave."""

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from istd.data.dataset import Sample
from istd.labels import INITIAL_MASKS, AreaPrior, ReleasedDiffusion, with_crf
from istd.labels.contrast_limited import equalise
from istd.labels.released_diffusion import EXTENDED, POINT, SPOT, TargetClass, further_sources, threshold, walk


def test_equalised_levels_are_those_of_opencv():
    """`createCLAHE(1.0, (4, 4))` of OpenCV 5.0; 14 columns are no multiple of 4, so both sides are mirrored."""
    y, x = np.ogrid[:12, :14]
    found = equalise(((7 * y + 13 * x + (y * x) % 11) % 256).astype(np.uint8), 1.0, 4)
    assert found[0].tolist() == [32, 64, 112, 135, 120, 108, 112, 123, 104, 92, 112, 135, 160, 183]
    assert found[7].tolist() == [76, 143, 175, 178, 158, 146, 187, 174, 162, 171, 191, 198, 221, 234]
    assert int(found.astype(int).sum()) == 27879


def test_a_level_becomes_the_share_of_its_tile_below_it():
    """One tile of 32 x 32, so a limit of 4 a level: 1,020 of 1,024 equal pixels are spread, three for every level and
    one more for the first 252; up to level 9 there are 10 x 4 and the 4 that remained, so 255 x 44/1024 = 10.96."""
    assert equalise(np.full((32, 32), 9, np.uint8), 1.0, 1).tolist() == [[11] * 32] * 32


def test_one_threshold_cuts_all_maps():
    rng = np.random.default_rng(0)
    for share in (0.2, 0.9):
        soft = np.where(rng.random((40, 50)) < share, 0, rng.random((40, 50))).astype(np.float32)
        level = (soft * 255).astype(np.uint8)
        assert np.array_equal(threshold(soft), level > threshold_otsu(level))
    few = np.zeros((9, 9), np.float32)
    few[0, :10] = 0.4
    few[1, 1] = 0.6
    assert np.argwhere(threshold(few)).tolist() == [[1, 1]]  # ten pixels: no histogram, 1/2 decides
    assert not threshold(np.zeros((4, 4), np.float32)).any()


def test_particles_drift_by_hand_and_stay_in_the_crop():
    """Without spread: 0.75 px down a step from (2, 1), so rows 2.75, 3.5, 4.25 are pixels 2, 3 and 4, cut, not rounded;
    at row 5 of 6 and beyond they are counted in the last row."""
    motion = np.zeros((3, 6, 4))
    motion[0] = 0.75
    for steps, row in ((1, 2), (2, 3), (3, 4), (9, 5)):
        rows, columns = walk(motion, (2, 1), TargetClass(1, 1, 5, steps, 0.2), np.random.default_rng(0))
        assert rows.tolist() == [row] * 5
        assert columns.tolist() == [1] * 5


def test_the_motion_is_the_published_equation():
    """A ramp of 0.1 per row: gradient (0.1, 0); its entropy is that of the levels in 5 x 5 pixels, log2 5 inside."""
    crop = np.repeat(0.1 * np.arange(8, dtype=np.float32)[:, None], 9, axis=1)
    down, across, spread = ReleasedDiffusion().motion(crop, 0.2)[:, 4, 4]
    diffusivity = 3.2 * np.exp(-6.0 * (0.6 * 0.1 + 0.4 * np.log2(5) / 8))
    assert (down, across) == pytest.approx((0.02, 0), abs=1e-8)
    assert spread == pytest.approx(np.sqrt(2 * diffusivity * 0.2), rel=1e-6)


def test_five_bright_maxima_of_the_superpixel_are_sources_too():
    crop, own = np.full((30, 60), 0.1, np.float32), np.ones((30, 60), bool)
    for k in range(7):
        crop[5, 4 + 8 * k] = 0.9
    crop[20, 30] = 0.15  # a maximum, but not bright
    own[5, 12] = False
    assert further_sources(crop, own) == [(5, 4), (5, 20), (5, 28), (5, 36), (5, 44)]
    assert further_sources(crop, np.zeros_like(own)) == []


def scene():
    y, x = np.ogrid[:64, :72]
    image = np.rint(60 + 8 * np.sin(0.4 * y) * np.cos(0.3 * x))
    for row, col, height, sigma in ((20, 22, 120, 1.2), (40, 50, 150, 2.5), (3, 68, 90, 1.0)):
        image = image + height * np.exp(-((y - row) ** 2 + (x - col) ** 2) / (2 * sigma**2))
    return np.rint(image).astype(np.float32) / 255, np.array([[20, 22], [40, 50], [3, 68]])


def test_masks_are_those_of_the_released_code():
    """Its code on this scene, with our noise: rows and first and last columns. A point, a spot and, at the border, what
    is told to be an extended target. Two pixels are left to versions of the superpixels."""
    image, points = scene()
    runs = [(0, 64, 70), (1, 67, 70), *((row, 70, 70) for row in range(2, 6)), (18, 21, 22), (19, 20, 23), (20, 20, 23)]
    runs += [
        (21, 21, 23),
        (36, 49, 50),
        (37, 48, 51),
        (38, 47, 52),
        *((r, 47, 53) for r in range(39, 43)),
        (43, 48, 52),
    ]
    expected = np.zeros(image.shape, bool)
    for row, first, last in runs:
        expected[row, first : last + 1] = True
    found = ReleasedDiffusion()(Sample("", image, points), np.array([5, 40, 200])).mask
    assert int((found ^ expected).sum()) <= 2


def test_areas_choose_the_class_and_without_them_all_are_spots():
    image, points = scene()
    truth = np.zeros(image.shape, bool)
    truth[19:22, 21:24] = truth[36:45, 46:55] = truth[0:10, 60:70] = True  # 9, 81 and 100 pixels
    rule = ReleasedDiffusion()
    told = AreaPrior(rule)(Sample("", image, points, truth)).mask
    assert np.array_equal(told, rule(Sample("", image, points), np.array([9, 81, 100])).mask)
    assert np.array_equal(rule(Sample("", image, points)).mask, rule(Sample("", image, points), np.full(3, 81)).mask)
    assert not np.array_equal(told, rule(Sample("", image, points)).mask)
    assert (POINT.half, SPOT.half, EXTENDED.half) == (5, 11, 25)
    rows, cols = np.nonzero(rule(Sample("", image, points[:1]), np.array([9])).mask)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) >= (15, 0, 17, 0)
    assert (rows.max(), cols.max()) < (25, 27)  # the box's last row and column are not in it, as published


def test_it_is_a_rule_like_others_with_the_crf_of_its_release():
    image, points = scene()
    rule = INITIAL_MASKS["diffusion-released"]
    assert np.array_equal(rule(Sample("", image, points)).mask, rule(Sample("", image, points)).mask)
    assert not rule(Sample("", image, np.zeros((0, 2), dtype=np.int64))).mask.any()
    corners = rule(Sample("", np.full((20, 20), 0.4, np.float32), np.array([[0, 0], [19, 19]])))
    assert corners.mask.shape == (20, 20)
    assert with_crf(rule).crf.bilateral == (8, 10, 110)
    assert with_crf(rule).crf.iterations == 5
