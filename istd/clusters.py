"""Image descriptors, and how many clusters a data set can carry: which images share a sample weight.

The published families of statistics, vectorised: intensity moments, quantiles and entropy, gradient and Laplacian
energy, mean-subtracted contrast-normalised (MSCN) coefficients, radial power spectrum, local binary patterns, and the
top of a matched filter. They read the image and nothing else.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage.feature import local_binary_pattern

Image = NDArray[np.float32]


def describe_image(image: Image) -> NDArray[np.float64]:
    """Descriptor of one image `(H, W)` in [0, 1]: a vector of 41 finite numbers."""
    x = image.astype(np.float32)
    return np.asarray(
        np.nan_to_num(np.concatenate([_intensity(x), _edges(x), _natural(x), _spectrum(x), _patterns(x), _peaks(x)]))
    )


def describe_images(images: Sequence[Image]) -> NDArray[np.float64]:
    """`(N, 41)` descriptors."""
    return np.stack([describe_image(image) for image in images])


def cluster_count(validation_images: int, largest: int = 256, per_cluster: int = 4) -> int:
    """Clusters for a set whose validation split has so many images.

    A cluster whose weight is learned from validation needs validation images of its own, so there are at most
    `validation_images / per_cluster` of them; the published 256 is the ceiling. (256 clusters on the 427 images of
    SIRST-v1 leave 89 % of the training images in clusters without any validation image.)
    """
    return int(np.clip(validation_images // per_cluster, 1, largest))


def _intensity(x: Image) -> NDArray[np.float64]:
    flat = x.ravel()
    histogram = np.bincount((flat * 63.999).clip(0, 63).astype(np.int64), minlength=64) / flat.size
    occupied = histogram[histogram > 0]
    entropy = -(occupied * np.log2(occupied)).sum()
    quantiles = np.quantile(flat, [0.01, 0.25, 0.5, 0.75, 0.99])
    return np.array([flat.mean(), flat.std(), stats.skew(flat), stats.kurtosis(flat), entropy, *quantiles])


def _edges(x: Image) -> NDArray[np.float64]:
    magnitude = np.hypot(ndimage.sobel(x, 0), ndimage.sobel(x, 1)).ravel()
    laplacian = ndimage.laplace(x)
    strong = float((magnitude > magnitude.mean() + 2 * magnitude.std()).mean())
    return np.array([magnitude.mean(), magnitude.std(), np.quantile(magnitude, 0.95), strong, laplacian.std()])


def _natural(x: Image) -> NDArray[np.float64]:
    mean = ndimage.gaussian_filter(x, 7 / 6)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(x * x, 7 / 6) - mean * mean, 0))
    mscn = ((x - mean) / (deviation + 1 / 255)).ravel()
    return np.array([mscn.std(), stats.skew(mscn), stats.kurtosis(mscn), deviation.mean(), deviation.std()])


def _spectrum(x: Image) -> NDArray[np.float64]:
    power = np.abs(np.fft.rfft2(x - x.mean())) ** 2
    fy, fx = np.fft.fftfreq(x.shape[0])[:, None], np.fft.rfftfreq(x.shape[1])[None]
    radius = np.hypot(fy, fx)
    edges = np.array([0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 0.75])
    band = np.digitize(radius.ravel(), edges[1:-1])
    energy = np.bincount(band, weights=power.ravel(), minlength=6) + 1e-12
    slope = np.polyfit(np.log(edges[1:-1]), np.log(energy[1:]), 1)[0]
    return np.array([*(energy / energy.sum()), slope])


def _patterns(x: Image) -> NDArray[np.float64]:
    codes = local_binary_pattern((x * 255).astype(np.uint8), 8, 1, method="uniform").astype(np.int64)
    return np.asarray(np.bincount(codes.ravel(), minlength=10) / codes.size)


def _peaks(x: Image) -> NDArray[np.float64]:
    band = ndimage.gaussian_filter(x, 1.0) - ndimage.gaussian_filter(x, 3.0)
    scaled = np.sort((band / (band.std() + 1e-6)).ravel())
    return np.array([scaled[-1], scaled[-max(len(scaled) // 1000, 1)], (scaled > 4).mean() * 1e3, band.std()])
