"""Image descriptors against other libraries, and the clusters formed on them."""

import numpy as np
import pytest
from scipy import ndimage, stats
from skimage.feature import graycomatrix, graycoprops
from skimage.filters import threshold_otsu

from bilevel.reweighting import SharedClusterWeights
from istd.weights import descriptors
from istd.weights.clusters import cluster_coordinates, cluster_count, cluster_weights, distinct_columns
from istd.weights.descriptors import describe_image, describe_images


def texture(seed=0, shape=(60, 75), sigma=1.5):
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


@pytest.mark.parametrize("sigma", [1.0, 7 / 6, 3.0])
def test_the_gaussian_filter_is_scipy_s(sigma):
    x = texture()
    expected = ndimage.gaussian_filter(x, sigma, mode="reflect", radius=int(np.ceil(3 * sigma)))
    np.testing.assert_allclose(descriptors._blur(x, sigma), expected, atol=1e-6)


def test_moments_and_quantiles():
    x = texture()
    expected = [x.std(), stats.skew(x, axis=None), stats.kurtosis(x, axis=None)]
    np.testing.assert_allclose(descriptors._moments(x), expected, rtol=1e-3)
    shares = (0.01, 0.25, 0.5, 0.75, 0.99)
    np.testing.assert_allclose(descriptors._quantiles(x, shares), np.quantile(x, shares), atol=1 / 1024)


def test_otsu_is_skimage_s():
    x = np.where(texture() > 0.5, 0.8, 0.2).astype(np.float32) + 0.05 * texture(1)
    threshold, separability, share = descriptors._intensity(x)[-3:]
    assert threshold == pytest.approx(threshold_otsu((x * 256).astype(np.uint8)) / 256, abs=2 / 256)
    assert separability > 0.95
    assert share == pytest.approx((x > 0.5).mean(), abs=0.02)


def test_co_occurrence_is_skimage_s():
    x = texture()
    grey = (x * 16).clip(0, 15).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    joint = graycomatrix(grey, [1], angles, 16, symmetric=True, normed=True).mean(axis=3, keepdims=True)
    contrast, homogeneity, energy, correlation, _ = descriptors._co_occurrence(x)
    for value, name in ((contrast, "contrast"), (homogeneity, "homogeneity"), (energy, "energy")):
        assert value == pytest.approx(graycoprops(joint, name)[0, 0], rel=1e-6)
    assert correlation == pytest.approx(graycoprops(joint, "correlation")[0, 0], rel=1e-6)


def test_binary_patterns_by_hand():
    """Bright everywhere but the centre: all eight neighbours are at least as bright."""
    x = np.full((8, 8), 0.5, np.float32)
    assert descriptors._patterns(x) == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    board = np.indices((8, 8)).sum(0) % 2 * np.float32(1)  # bright pixels: only diagonals are as bright, four changes
    found = descriptors._patterns(board)
    assert found[8] == pytest.approx(0.5)
    assert found[9] == pytest.approx(0.5)
    assert sum(found) == pytest.approx(1)


def test_gabor_channels_hear_their_own_wave():
    rows, cols = np.indices((64, 64))
    for channel, (frequency, angle) in enumerate(descriptors.GABOR):
        wave = 0.5 + 0.4 * np.cos(2 * np.pi * frequency * (np.cos(angle) * cols + np.sin(angle) * rows))
        energies = descriptors._spectrum(wave.astype(np.float32))[7:]
        assert int(np.argmax(energies)) == channel


def test_a_plane_has_dimension_two_and_noise_more():
    plane = np.full((64, 64), 0.3, np.float32)
    noise = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    assert descriptors._fractal(plane)[0] == pytest.approx(2.0, abs=1e-9)
    assert 2.5 < descriptors._fractal(noise)[0] <= 3


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.ones((8, 300)), np.eye(31), np.full((9, 9), 1e-9)])
def test_descriptors_of_degenerate_images_are_finite(image):
    found = describe_image(image.astype(np.float32))
    assert found.shape == (61,)
    assert np.isfinite(found).all()


def test_an_image_too_small_to_describe_is_refused():
    with pytest.raises(ValueError, match="8 x 8"):
        describe_image(np.zeros((7, 20), np.float32))


def rows(n=60):
    kinds = [texture(i, (48, 48), sigma=(0.4, 1.2, 6.0)[i % 3]) for i in range(n)]
    return describe_images(kinds), np.arange(n) % 3


def test_clusters_find_kinds_of_texture():
    x, kind = rows()
    labels = cluster_weights(x, 3, len(x)).clusters.labels
    for k in range(3):
        assert len(np.unique(labels[kind == k])) == 1
    assert len(np.unique(labels)) == 3


def test_the_second_pass_keeps_what_tells_clusters_apart():
    """Two informative columns among 60 of noise: after ranking, k-means sees through the noise."""
    rng = np.random.default_rng(0)
    group = np.arange(200) % 4
    x = rng.normal(size=(200, 60))
    x[:, 7], x[:, 31] = 8.0 * (group % 2) + 0.1 * x[:, 7], 8.0 * (group // 2) + 0.1 * x[:, 31]
    coordinates = cluster_coordinates(x, 4)
    assert coordinates.shape[1] <= 20
    np.testing.assert_array_equal(coordinates, cluster_coordinates(x, 4))  # deterministic
    assert np.isfinite(cluster_coordinates(np.repeat(x[:1], 50, axis=0), 4)).all()
    twice = np.hstack([x, x])  # repeated columns are dropped
    np.testing.assert_allclose(np.abs(cluster_coordinates(twice, 4)), np.abs(coordinates), rtol=1e-6, atol=1e-9)


def test_of_two_alike_descriptors_the_one_of_smaller_variance_goes_the_most_alike_pair_first():
    """Columns a, 2 a, c, a + little noise: a and 2 a correlate fully, so a goes first; the noisy one is like 2 a too.

    Published so. Equal variances keep the earlier column; a constant and one that hardly varies go before all pairs.
    """
    rng = np.random.default_rng(0)
    a, c, noise = rng.normal(size=(3, 100))
    x = np.stack([a, 2 * a, c, a + 0.05 * noise, np.full(100, 3.0), 1e-6 * c], axis=1)
    assert distinct_columns(x).tolist() == [1, 2]
    assert distinct_columns(np.stack([a, -a, c], axis=1)).tolist() == [0, 2]
    chain = np.stack([a, a + 0.25 * noise, a + 0.5 * noise], axis=1)
    alike = np.abs(np.corrcoef(chain, rowvar=False))
    assert alike[0, 2] < 0.95 < alike[0, 1] < alike[1, 2]
    assert distinct_columns(chain).tolist() == [0, 2]  # 1 goes with 2, and 0 is then like nothing that is left
    assert distinct_columns(np.zeros((5, 3))).tolist() == []
    assert cluster_coordinates(np.zeros((5, 3)), 2).shape == (5, 1)


def test_further_rows_shape_the_clusters_but_have_no_weight():
    x, _ = rows()
    alone, more = cluster_weights(x[:40], 3, 40), cluster_weights(x, 3, 40)
    assert len(more.groups) == len(alone.groups) == 40
    assert not np.allclose(more.clusters.centres.mean(0)[:1], alone.clusters.centres.mean(0)[:1])


@pytest.mark.parametrize("sharing", ["nested", "smoothed"])
def test_sharing_by_name(sharing):
    assert isinstance(cluster_weights(rows(20)[0], 4, 20, sharing), SharedClusterWeights)
    with pytest.raises(ValueError, match="`sharing`"):
        cluster_weights(rows(20)[0], 4, 20, "other")


def test_clusters_scale_with_the_validation_split():
    assert cluster_count(42) == 10
    assert cluster_count(2) == 1
    assert cluster_count(10_000) == 256
