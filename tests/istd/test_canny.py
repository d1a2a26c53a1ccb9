"""The Canny start of PAL, on integers: its stages by hand, its ties, and the masks that the released code draws."""

import numpy as np
import pytest

from istd.labels import CannyContour
from istd.labels.canny import canny_edges, smoothed
from istd.metrics import evaluate_masks
from istd.regions import polygon_area
from tests.istd.tiny import mask_of


def picture(text):
    return np.array([[c == "#" for c in line.strip()] for line in text.strip().splitlines()])


def on_grey(patch, top, left, size=32, background=50):
    image = np.full((size, size), background, dtype=np.int64)
    image[top : top + len(patch), left : left + len(patch[0])] = patch
    return image


def drawn(image, *points):
    return mask_of(CannyContour(), (image / 255).astype(np.float32), np.array(points))


def square(side, level=150):
    return on_grey(np.full((side, side), level), 16 - side // 2, 16 - side // 2)


# --- stages --------------------------------------------------------------------------------------------------------


def test_smoothing_rounds_half_up_and_mirrors_borders():
    """(1 2 1) x (1 2 1) / 16: a pixel of 2 among 0 leaves 8/16 everywhere; rows of 10 0 0 0 give 5 and 2.5."""
    spot = np.zeros((3, 3), dtype=np.int64)
    spot[1, 1] = 2
    assert smoothed(spot).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]  # corners mirror the middle four times: 8/16
    spot = np.zeros((5, 5), dtype=np.int64)
    spot[2, 2] = 2
    assert smoothed(spot)[1:4, 1:4].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    column = np.zeros((4, 4), dtype=np.int64)
    column[:, 0] = 10
    assert smoothed(column).tolist() == [[5, 3, 0, 0]] * 4  # 10/2, and 10/4 = 2.5 upwards


def test_of_two_equal_gradients_in_a_row_the_first_stays():
    """A step of 20 between two columns: |gx| = 80 on both sides of it."""
    step = np.zeros((6, 6), dtype=np.int64)
    step[:, 3:] = 20
    for image in (step, step.T):
        edges = canny_edges(image, 20, 40)
        where = np.argwhere(edges)[:, 1] if image is step else np.argwhere(edges)[:, 0]
        assert set(where.tolist()) == {2}
        assert edges.sum() == 6


def test_of_two_equal_gradients_on_a_diagonal_neither_stays():
    """A ramp of six steps of 10 along d = row + column: m = 20 (8, 8, 8) at d = 8, 9, 10 and 20 * 7 beside them.

    Diagonal neighbours are two apart in d: 8 and 10 are equal and go, 9 exceeds 7 and 11 and stays.
    """
    d = np.add.outer(np.arange(12), np.arange(12))
    edges = canny_edges(10 * np.clip(d - 6, 0, 6), 20, 40)
    inner = slice(2, -2), slice(2, -2)  # at the border, gradients see repeated pixels
    assert set(d[inner][edges[inner]].tolist()) == {9}


def test_thresholds_are_exceeded_not_reached_and_weak_edges_need_a_strong_one():
    """A step of height h has |gx| = 4 h: 5 is exactly the lower threshold, 10 exactly the upper one."""

    def edges(*heights):
        image = np.zeros((3 * len(heights), 8), dtype=np.int64)
        for i, h in enumerate(heights):
            image[3 * i : 3 * i + 3, 4:] = h
        return canny_edges(image, 20, 40)

    assert not edges(5).any()
    assert not edges(10).any()
    assert edges(11).sum() == 3
    joined = edges(8, 11)  # weak above strong, one line
    assert joined[0].any()


def test_the_polygon_through_border_pixels():
    for side, area in ((1, 0), (2, 1), (3, 4), (8, 49)):
        assert polygon_area(np.ones((side, side), dtype=bool)) == area
    assert polygon_area(np.ones((1, 9), dtype=bool)) == 0
    assert polygon_area(np.eye(5, dtype=bool)) == 0
    assert polygon_area(picture(".#.\n###\n.#.")) == 2  # a diamond with diagonals of 2


# --- the whole rule: masks of the released code -----------------------------------------------------------------------


@pytest.mark.parametrize(("side", "pixels"), [(1, 9), (2, 1), (3, 21), (4, 32), (5, 45), (6, 60), (7, 1), (8, 1)])
def test_squares_as_the_released_code_draws_them(side, pixels):
    """A square of 2 pixels does not close; that of 7 has an area of 62. Where the rule fails, the point is left."""
    found = drawn(square(side), (16, 16))
    assert found.mask.sum() == pixels
    assert found.reliable.tolist() == [pixels > 1]


@pytest.mark.parametrize(("level", "pixels"), [(80, 1), (82, 32)])
def test_a_square_of_four_closes_from_32_grey_levels_up(level, pixels):
    assert drawn(square(4, level), (15, 15)).mask.sum() == pixels


def test_a_slanted_target_and_one_in_the_corner():
    slant = np.full((32, 32), 50, dtype=np.int64)
    for k in range(-3, 4):
        slant[16 + k, 15 + k : 17 + k] = 150
    expected = np.zeros((32, 32), dtype=bool)
    expected[12:21, 12:20] = picture(
        """
        ##......
        ###.....
        ####....
        .####...
        ..####..
        ...####.
        ....####
        .....###
        ......##
        """
    )
    assert np.array_equal(drawn(slant, (16, 16)).mask, expected)
    corner = np.zeros((32, 32), dtype=bool)
    corner[:4, :5] = picture("#####\n#####\n#####\n####.")
    assert np.array_equal(drawn(on_grey(np.full((3, 4), 150), 0, 0), (1, 1)).mask, corner)


def test_the_window_has_half_pixels_before_the_point_and_one_less_after():
    """Rows r - 5 to r + 4 of a square in rows 14 to 18: what the window cuts is the same for r and 33 - r."""
    rule = CannyContour(half=5)
    image = (square(5) / 255).astype(np.float32)
    found = [int(mask_of(rule, image, np.array([[row, 16]])).mask.sum()) for row in range(14, 20)]
    assert found == [45, 53, 55, 55, 53, 45]


def test_no_points_and_points_that_share_a_target():
    none = drawn(square(5), *np.zeros((0, 2), dtype=int))
    assert none.mask.sum() == 0
    assert none.reliable.shape == (0,)
    twice = drawn(square(5), (16, 16), (15, 17), (2, 2))
    assert twice.mask.sum() == 45 + 1
    assert twice.reliable.tolist() == [True, True, False]


@pytest.mark.data
def test_the_released_masks_of_sirst(sirst):
    """What the released code gives on the 171 training images: 104 of them enter the first pool."""
    drawn = [(CannyContour()(s), s.truth()) for s in sirst.train]
    found = evaluate_masks([(d.mask, truth) for d, truth in drawn])
    assert found["IoU"] == pytest.approx(0.28172873, abs=1e-8)
    assert found["nIoU"] == pytest.approx(0.43605107, abs=1e-8)
    assert sum(d.reliable.mean() >= 0.8 for d, _ in drawn) == 104
