"""What an image looks like, as 61 numbers: the published families of image statistics, a few milliseconds an image.

Intensity moments, quantiles, entropy and Otsu's threshold; gradients, Laplacian, corners; mean-subtracted
contrast-normalised (MSCN) coefficients; radial power spectrum and Gabor energies, from one Fourier transform; local
binary patterns; grey-level co-occurrence; box-counting dimension; and the top of a matched filter. They read the image
and nothing else.

Source: the families are those of semantic-priors' released script; formulas and implementations are ours.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.linalg.blas import saxpy
from threadpoolctl import ThreadpoolController

Image = NDArray[np.float32]
Numbers = list[float]

BINS = 2048  # of the histograms that quantiles are read from
LEVELS = 16  # grey levels of co-occurrence
BANDS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # edges of the radial spectrum, cycles per pixel
GABOR = tuple((f, k * np.pi / 4) for f in (0.1, 0.25) for k in range(4))  # frequency and direction


def describe_image(image: Image) -> NDArray[np.float64]:
    """Descriptor of one image `(H, W)` in [0, 1]: a vector of 61 finite numbers.

    Raises:
        ValueError: if the image is smaller than 8 x 8 or not two-dimensional.
    """
    if image.ndim != 2 or min(image.shape) < 8:
        raise ValueError(f"`image` must be (H, W) of at least 8 x 8 pixels, got shape {image.shape}.")
    x = np.ascontiguousarray(image, dtype=np.float32)
    families = _intensity, _edges, _natural, _spectrum, _patterns, _co_occurrence, _fractal, _peaks
    with _thread_pools().limit(limits=1, user_api="blas"):  # a second thread costs more than such short sums
        numbers = [number for family in families for number in family(x)]
    return np.nan_to_num(np.array(numbers, dtype=np.float64))


def describe_images(images: Sequence[Image]) -> NDArray[np.float64]:
    """`(N, 61)` descriptors."""
    return np.stack([describe_image(image) for image in images])


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, hence once


def _intensity(x: Image) -> Numbers:
    """Mean, deviation, skewness, excess kurtosis, entropy of 64 grey levels, five quantiles; Otsu's threshold."""
    share = _histogram(x, 256, 0.0, 1.0) / x.size
    coarse = share.reshape(64, 4).sum(1)
    entropy = -float((coarse[coarse > 0] * np.log2(coarse[coarse > 0])).sum())
    quantiles = _quantiles(x, (0.01, 0.25, 0.5, 0.75, 0.99))
    return [float(x.mean()), *_moments(x), entropy, *quantiles, *_otsu(share)]


def _otsu(share: NDArray[np.float64]) -> Numbers:
    """Otsu's threshold, the share of variance between its two classes, and the upper class's share of pixels.

    From the `(256,)` shares of grey levels.
    """
    middle = (np.arange(256) + 0.5) / 256
    below = np.cumsum(share)
    first, total = np.cumsum(share * middle), float((share * middle).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num((total * below - first) ** 2 / (below * (1 - below)), posinf=0.0)
    best = int(between.argmax())
    variance = float((share * (middle - total) ** 2).sum())
    return [float(middle[best]), float(between[best]) / max(variance, 1e-12), float(1 - below[best])]


def _edges(x: Image) -> Numbers:
    """Sobel magnitude, Laplacian, and Harris corners (Harris and Stephens, 1988; k = 0.05, windows of 3 x 3)."""
    p = np.pad(x, 1, mode="reflect")
    gx, gy = _sobel(p), _sobel(p.T).T
    # One after the other, so that few arrays live at once: memory that goes back to the system comes back page by page.
    return [*_gradients(gx, gy), *_laplacian(p), *_corners(gx, gy)]


def _gradients(gx: Image, gy: Image) -> Numbers:
    magnitude = gx * gx
    magnitude += gy * gy
    np.sqrt(magnitude, out=magnitude)
    mean, deviation = float(magnitude.mean()), _deviation(magnitude)
    strong = _share(magnitude > mean + 2 * deviation)
    return [mean, deviation, *_quantiles(magnitude, (0.95,)), strong]


def _laplacian(p: Image) -> Numbers:
    laplacian = p[2:, 1:-1] + p[:-2, 1:-1]
    for part in (p[1:-1, 2:], p[1:-1, :-2], -4 * p[1:-1, 1:-1]):
        laplacian += part
    return [_deviation(laplacian)]


def _corners(gx: Image, gy: Image) -> Numbers:
    xy = _window(gx * gy)
    xx, yy = _window(gx * gx), _window(gy * gy)
    corners = xx * yy
    corners -= np.square(xy, out=xy)
    xx += yy
    np.square(xx, out=xx)
    xx *= 0.05
    corners -= xx
    top = float(corners.max())
    found = _share(corners > 0.01 * top) if top > 0 else 0.0
    return [_deviation(corners), top, found]


def _sobel(p: Image) -> Image:
    """Sobel's derivative along the columns of a padded image."""
    across = p[:, 2:] - p[:, :-2]
    out = across[:-2] + across[2:]
    out += across[1:-1]
    out += across[1:-1]
    return out


def _natural(x: Image) -> Numbers:
    """MSCN coefficients `(x - m) / (s + 1/255)` and the local deviation s (Mittal et al., 2012)."""
    mean = _blur(x, 7 / 6)
    deviation = _blur(x * x, 7 / 6)
    deviation -= mean * mean
    np.sqrt(np.maximum(deviation, 0, out=deviation), out=deviation)
    spread = [float(deviation.mean()), _deviation(deviation)]
    deviation += 1 / 255
    mscn = x - mean
    mscn /= deviation
    return [*_moments(mscn), *spread]


def _spectrum(x: Image) -> Numbers:
    """Shares of power in six rings, their slope, and shares in eight Gabor channels; one Fourier transform.

    By Parseval's theorem the energy of a filtered image is the sum of its power under the filter's squared transfer.
    """
    transform = scipy.fft.rfft2(x - x.mean())
    power = (transform.real**2 + transform.imag**2).ravel()
    ring, gabor = _filters(x.shape)
    energy = np.bincount(ring, weights=power, minlength=len(BANDS) + 1) + 1e-12
    slope = np.polyfit(np.log(BANDS), np.log(energy[1:]), 1)[0]
    return [*(energy / energy.sum()).tolist(), float(slope), *(gabor @ power / energy.sum()).tolist()]


@lru_cache(maxsize=8)
def _filters(shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ring of every frequency, and the Gabor channels' squared transfer functions (both sides of the spectrum)."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    rings = np.digitize(np.hypot(fy, fx).ravel(), BANDS)
    rows = []
    for f, angle in GABOR:
        u, v = f * np.cos(angle), f * np.sin(angle)
        both = [np.exp(-((fx - s * u) ** 2 + (fy - s * v) ** 2) / (f / 3) ** 2) for s in (1, -1)]
        rows.append((both[0] + both[1]).ravel())
    return rings, np.array(rows, dtype=np.float32)


def _patterns(x: Image) -> Numbers:
    """Local binary patterns: shares of the nine uniform codes by number of ones, and of all others.

    A code is uniform if it changes at most twice around the circle (Ojala et al., 2002); neighbours are pixels.
    """
    grey = (x * 255).clip(0, 255).astype(np.uint8)
    inner = grey[1:-1, 1:-1]
    circle = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    h, w = inner.shape
    code = np.zeros(inner.shape, dtype=np.uint8)
    for bit, (i, j) in enumerate(circle):
        code |= (grey[i : i + h, j : j + w] >= inner).view(np.uint8) << bit
    counts = np.bincount(code.ravel(), minlength=256)
    return list(np.bincount(_uniform(), weights=counts, minlength=10) / code.size)


@lru_cache(maxsize=1)
def _uniform() -> NDArray[np.int64]:
    """Class of every 8-bit code: its number of ones if it is uniform, else 9."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9)


def _co_occurrence(x: Image) -> Numbers:
    """Contrast, homogeneity, energy, correlation and entropy of neighbouring grey levels (Haralick et al., 1973).

    The symmetric matrix of 16 levels, averaged over the four directions at distance one.
    """
    grey = (x * LEVELS).clip(0, LEVELS - 1).astype(np.uint8)
    joint = np.zeros((LEVELS, LEVELS))
    for a, b in (
        (grey[:, :-1], grey[:, 1:]),
        (grey[:-1], grey[1:]),
        (grey[:-1, :-1], grey[1:, 1:]),
        (grey[1:, :-1], grey[:-1, 1:]),
    ):
        counts = np.bincount((a * np.uint8(LEVELS) + b).ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)
        joint += (counts + counts.T) / (8 * a.size)
    i, j = np.indices(joint.shape)
    mean = float((i * joint).sum())
    variance = float(((i - mean) ** 2 * joint).sum())
    correlation = float(((i - mean) * (j - mean) * joint).sum()) / variance if variance > 1e-12 else 1.0
    present = joint[joint > 0]
    gap = (i - j) ** 2
    return [
        float((gap * joint).sum()),
        float((joint / (1 + gap)).sum()),
        float(np.sqrt((joint**2).sum())),
        correlation,
        -float((present * np.log2(present)).sum()),
    ]


def _fractal(x: Image) -> Numbers:
    """Differential box-counting dimension of the grey-level surface (Sarkar and Chaudhuri, 1994), boxes of 2 to 32."""
    counts, sizes = [], [s for s in (2, 4, 8, 16, 32) if s <= min(x.shape)]
    high = low = x
    for s in sizes:
        high, low = _pairwise(np.maximum, high), _pairwise(np.minimum, low)
        height = s / min(x.shape)  # a box is as high, in units of the grey range, as it is wide
        counts.append(float((np.floor(high / height) - np.floor(low / height) + 1).mean()) * x.size / s**2)
    return [float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])]


def _pairwise(take: np.ufunc, x: Image) -> Image:
    """Halve both sides, taking the larger or smaller of two neighbours; a last odd row or column is left out."""
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    rows = take(x[0:h:2], x[1:h:2])
    return np.asarray(take(rows[:, 0:w:2], rows[:, 1:w:2]))


def _peaks(x: Image) -> Numbers:
    """Top of a difference of Gaussians (1 and 3 px) in units of its deviation: maximum, 99.9 %, share above 4."""
    band = _blur(x, 1.0)
    band -= _blur(x, 3.0)
    deviation = _deviation(band)
    unit = deviation + 1e-6
    (high,) = _quantiles(band, (0.999,))
    return [float(band.max()) / unit, high / unit, 1e3 * _share(band > 4 * unit), deviation]


def _blur(x: Image, sigma: float) -> Image:
    """Gaussian filter with reflected borders, cut off at three deviations."""
    radius = min(int(np.ceil(3 * sigma)), min(x.shape) - 1)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    taps = (taps / (2 * taps.sum() - taps[0])).astype(np.float32)
    (h, w), x = x.shape, np.ascontiguousarray(x)
    for axis in (0, 1):
        p = np.pad(x, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        # Neighbours lie `step` apart in memory, so whole images are added as vectors; what wraps around lands in the
        # padding.
        flat, step = p.ravel(), p.strides[axis] // p.itemsize
        first, n = radius * step, p.size - 2 * radius * step
        out, pair = np.zeros_like(flat), np.empty(n, dtype=flat.dtype)
        np.multiply(flat[first : first + n], taps[0], out=out[:n])
        for k in range(step, first + 1, step):
            np.add(flat[first + k : first + k + n], flat[first - k : first - k + n], out=pair)
            saxpy(pair, out[:n], a=taps[k // step])  # adds into `out`: one pass for two
        x = out.reshape(p.shape)[:h, :w]
    return x


def _window(x: Image) -> Image:
    """Mean over 3 x 3 pixels, inside the image."""
    rows = x[2:] + x[:-2]
    rows += x[1:-1]
    out = rows[:, 2:] + rows[:, :-2]
    out += rows[:, 1:-1]
    out /= 9
    return out


def _moments(x: Image) -> Numbers:
    """Deviation, skewness, excess kurtosis."""
    centred = (x - x.mean()).ravel()
    square = centred * centred
    variance = float(square.mean())
    if variance < 1e-12:
        return [0.0, 0.0, 0.0]
    third, fourth = float(square @ centred) / x.size, float(square @ square) / x.size
    return [variance**0.5, third / variance**1.5, fourth / variance**2 - 3]


def _deviation(x: Image) -> float:
    """Standard deviation: `numpy.std` with a pass less."""
    centred = (x - x.mean()).ravel()
    return math.sqrt(float(centred @ centred) / x.size)


def _share(mask: NDArray[np.bool_]) -> float:
    """Share of pixels that are True; counting is far quicker than a mean."""
    return np.count_nonzero(mask) / mask.size


def _histogram(x: Image, bins: int, low: float, high: float) -> NDArray[np.int64]:
    """Counts of equal bins over [low, high]; values outside go to the outermost."""
    scaled = x - np.float32(low)
    scaled *= np.float32(bins / max(high - low, 1e-12))
    np.clip(scaled, 0, bins - 1, out=scaled)
    return np.bincount(scaled.astype(np.intp).ravel(), minlength=bins)


def _quantiles(x: Image, shares: Sequence[float]) -> Numbers:
    """Quantiles to within 1/2048 of the range, from a histogram, which needs no sorting."""
    low, high = float(x.min()), float(x.max())
    cumulative = np.cumsum(_histogram(x, BINS, low, high))
    places = np.searchsorted(cumulative, np.asarray(shares) * x.size)
    return [low + (high - low) * (float(place) + 0.5) / BINS for place in places]
