"""Synthetic infrared scenes: backgrounds, sensor and targets with known truth, rendered in memory.

Background (sky, sea, ground, cloud) is smooth random structure with a power-law spectrum and features of its kind; the
sensor adds Gaussian read noise and fixed-pattern column noise, both in the same units as the image (intensity 0..1);
targets are shapes convolved with a Gaussian point-spread function, scaled to a set local signal-to-clutter ratio

    SCR = (mean over target - mean over surround) / std over surround,

with the surround 10 px around the target's box, as far as the sensor's range allows: a target on strong clutter
saturates at 1 before it reaches a high ratio. The truth of a target is where its blurred profile exceeds a quarter of
its peak (-6 dB), at least 2 px.

The four characteristics of Yuan et al. (semantic-priors, 2026) are controls: contrast high or low, shape regular or
hard. `salient` = regular, high; `filamentary` = hard, high; `faint` = regular, low; `camouflaged` = hard, low and on
cluttered ground.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from istd.data.layouts import Dataset, Sample
from istd.data.points import centroid_points

Array = NDArray[np.float64]
Background = Literal["sky", "sea", "ground", "cloud"]
Characteristic = Literal["salient", "filamentary", "faint", "camouflaged"]
BACKGROUNDS: tuple[Background, ...] = ("sky", "sea", "ground", "cloud")
CHARACTERISTICS: tuple[Characteristic, ...] = ("salient", "filamentary", "faint", "camouflaged")

_SCR = {"salient": (8.0, 14.0), "filamentary": (7.0, 12.0), "faint": (2.5, 4.5), "camouflaged": (2.5, 4.5)}
_SLOPE = {"sky": 3.2, "sea": 2.2, "ground": 2.4, "cloud": 3.0}  # exponent of the power spectrum 1 / f^slope
_CONTRAST = {"sky": 0.05, "sea": 0.07, "ground": 0.10, "cloud": 0.10}
LARGEST_AREA = 60  # px of truth, blur included
_MARGIN = 10  # px of surround over which the signal-to-clutter ratio is defined


@dataclass(frozen=True)
class SceneConfig:
    """What a scene looks like.

    Attributes:
        size: side of the square image in pixels.
        targets: fewest and most targets per image; 0 is allowed.
        area: smallest and largest nominal target area in pixels, within 2..60.
        psf: standard deviation of the point-spread function in pixels.
        noise: standard deviation of the read noise, in units of the full range.
        pattern: standard deviation of the fixed-pattern column noise.
        scr: signal-to-clutter ratio of every target, or None for the range of its characteristic.
        backgrounds: kinds to draw from.
        characteristics: kinds to draw from.
    """

    size: int = 128
    targets: tuple[int, int] = (1, 3)
    area: tuple[int, int] = (4, 40)
    psf: float = 0.8
    noise: float = 0.006
    pattern: float = 0.004
    scr: float | None = None
    backgrounds: tuple[Background, ...] = BACKGROUNDS
    characteristics: tuple[Characteristic, ...] = CHARACTERISTICS

    def __post_init__(self) -> None:
        if self.size < 64:
            raise ValueError(f"`size` must be at least 64, got {self.size}; targets need a surround.")
        if not 2 <= self.area[0] <= self.area[1] <= LARGEST_AREA:
            raise ValueError(
                f"`area` must lie within 2..60 pixels, got {self.area}; larger ones are not small targets."
            )
        if not 0 <= self.targets[0] <= self.targets[1]:
            raise ValueError(f"`targets` must be a range of counts, got {self.targets}.")


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered image with its truth.

    Attributes:
        image: `(H, W)` float32 in [0, 1].
        mask: `(H, W)` bool.
        background: kind of background.
        characteristics: kind of every target, in the order they were placed.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    background: Background
    characteristics: tuple[Characteristic, ...]


def render_scene(config: SceneConfig, seed: int) -> Scene:
    """Render one scene; the same config and seed give the same pixels."""
    rng = np.random.default_rng(seed)
    kind = config.backgrounds[rng.integers(len(config.backgrounds))]
    image = _background(kind, config.size, rng)
    image += config.pattern * rng.standard_normal(config.size)[None, :]  # one gain error per detector column
    image += config.noise * rng.standard_normal(image.shape)
    image = np.clip(image, 0.02, 0.75)  # headroom, so that bright targets do not saturate
    mask = np.zeros(image.shape, dtype=bool)
    placed: list[Characteristic] = []
    for _ in range(int(rng.integers(config.targets[0], config.targets[1] + 1))):
        characteristic = config.characteristics[rng.integers(len(config.characteristics))]
        if _add_target(image, mask, characteristic, config, rng):
            placed.append(characteristic)
    levels = np.rint(np.clip(image, 0, 1) * 255) / 255  # 8-bit sensor output
    return Scene(levels.astype(np.float32), mask, kind, tuple(placed))


def synthetic_dataset(
    train: int = 48, val: int = 16, test: int = 24, config: SceneConfig | None = None, seed: int = 0
) -> Dataset:
    """Render a dataset; training samples carry points, and their masks serve only the final comparison.

    Args:
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        config: what the scenes look like.
        seed: first scene seed; splits use disjoint seeds.
    """
    config = config or SceneConfig()

    def split(name: str, count: int, offset: int) -> tuple[Sample, ...]:
        samples = []
        for i in range(count):
            scene = render_scene(config, seed * 1_000_000 + offset + i)
            samples.append(Sample(f"{name}_{i:04d}", scene.image, centroid_points(scene.mask), scene.mask))
        return tuple(samples)

    return Dataset("synthetic", split("train", train, 0), split("val", val, 300_000), split("test", test, 600_000))


def _power_law(size: int, slope: float, rng: np.random.Generator, stretch: float = 1.0) -> Array:
    """Gaussian random field of spectrum 1 / f^slope, zero mean, unit deviation; `stretch` > 1 elongates it in x."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :] * stretch
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    shape = radius.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / radius ** (slope / 2)
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray((field - field.mean()) / field.std())


def _background(kind: Background, size: int, rng: np.random.Generator) -> Array:
    texture = _power_law(size, _SLOPE[kind], rng, stretch=2.5 if kind == "sea" else 1.0)
    row = np.linspace(-1, 1, size)[:, None]
    image = 0.3 + _CONTRAST[kind] * texture
    if kind == "sky":
        image = image + 0.08 * row  # radiance grows towards the horizon
    elif kind == "sea":
        horizon = int(rng.uniform(0.15, 0.4) * size)
        image[:horizon] = 0.38 + 0.01 * texture[:horizon]
        glint = _power_law(size, 1.0, rng, stretch=4.0)
        image[horizon:] += 0.05 * np.clip(glint[horizon:] - 1.5, 0, None)
    elif kind == "ground":
        fields = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 16)
        image += 0.08 * np.digitize(fields / fields.std(), [-0.5, 0.3, 1.0]) / 3  # patches with sharp borders
        for _ in range(int(rng.integers(0, 3))):  # roads and walls
            a, b, width = rng.uniform(-1, 1), rng.uniform(0.2, 0.8) * size, rng.uniform(1, 2)
            x = np.arange(size)
            image += 0.10 * np.exp(-0.5 * ((x[:, None] - a * x[None, :] - b) / width) ** 2)
    elif kind == "cloud":
        cloud = ndimage.gaussian_filter(_power_law(size, 3.0, rng), 1.0)
        image += 0.22 / (1 + np.exp(-6 * (cloud - 0.3)))  # bright deck with a steep edge
    return np.asarray(image)


def _profile(characteristic: Characteristic, area: float, psf: float, rng: np.random.Generator) -> Array:
    """Blurred target profile with peak 1, on a patch that holds it."""
    half = 16
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    y, x = y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    if characteristic in ("salient", "faint"):
        ratio = rng.uniform(1.0, 1.6)
        radius = np.sqrt(area / np.pi)
        shape = ((u / (radius * np.sqrt(ratio))) ** 2 + (v * np.sqrt(ratio) / radius) ** 2 <= 1).astype(float)
    elif characteristic == "filamentary":
        width = rng.uniform(1.0, 1.6)
        length = min(max(area / width, 4.0), 26.0)
        bend = rng.uniform(-0.02, 0.02)
        shape = ((np.abs(u) <= length / 2) & (np.abs(v - bend * u**2) <= width / 2)).astype(float)
    else:  # camouflaged: a fuselage with wings, or two merged blobs
        length, wing = np.sqrt(area) * 1.4, np.sqrt(area) * 0.9
        body = (np.abs(u) <= length / 2) & (np.abs(v) <= max(length / 6, 0.6))
        wings = (np.abs(u - rng.uniform(-0.15, 0.15) * length) <= max(length / 8, 0.6)) & (np.abs(v) <= wing / 2)
        shape = (body | wings).astype(float)
    if shape.sum() == 0:
        shape[half, half] = 1.0
    blurred = ndimage.gaussian_filter(shape, psf)
    return np.asarray(blurred / blurred.max())


def _add_target(
    image: Array, mask: NDArray[np.bool_], kind: Characteristic, config: SceneConfig, rng: np.random.Generator
) -> bool:
    """Place one target where it fits, away from others; returns whether a place was found."""
    area = float(np.exp(rng.uniform(*np.log(config.area))))
    profile = _profile(kind, area, config.psf, rng)
    while (profile > 0.25).sum() > LARGEST_AREA:  # the blur widens thin shapes
        area *= 0.8
        profile = _profile(kind, area, config.psf, rng)
    support = profile > 0.25
    if support.sum() < 2:
        order = np.argsort(profile, axis=None)[::-1][:2]
        support = np.zeros(profile.shape, dtype=bool)
        support.flat[order] = True
    rows, cols = ndimage.find_objects(support.astype(np.int32))[0]
    profile, support = profile[rows, cols], support[rows, cols]
    h, w = support.shape
    low, high = 4, config.size - 4
    for _ in range(30):
        top, left = int(rng.integers(low, high - h)), int(rng.integers(low, high - w))
        around = (
            slice(max(top - _MARGIN, 0), top + h + _MARGIN),
            slice(max(left - _MARGIN, 0), left + w + _MARGIN),
        )
        if not mask[around].any():
            break
    else:
        return False
    scr = config.scr if config.scr is not None else float(rng.uniform(*_SCR[kind]))
    place = (slice(top, top + h), slice(left, left + w))
    near = np.ones(image[around].shape, dtype=bool)
    near[top - around[0].start : top - around[0].start + h, left - around[1].start : left - around[1].start + w] = False
    surround = image[around][near]
    wanted = surround.mean() + scr * max(float(surround.std()), config.noise, 1 / 255)
    amplitude = (wanted - image[place][support].mean()) / profile[support].mean()
    image[place] += max(amplitude, 2 / 255) * profile
    mask[place] |= support
    return True
