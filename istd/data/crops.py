"""Training batches: random crops with their pseudo-masks, a pure function of (seed, epoch)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from istd.data.dataset import Sample
from istd.data.normalisation import Normalisation

T = TypeVar("T", bound=np.generic)


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        image: `(B, C, H, W)` normalised intensities, with the channels of the network.
        target: `(B, C, H, W)` pseudo-mask, 0 or 1 (C = 1), or what a learned or partial label needs (C > 1).
        index: `(B,)` positions of the samples in the list that the labels and weights are kept for.
        tokens: `(B, K, N, D)` frozen features for the teacher, or None without one.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # nobody looks for a tensor in a batch by `tuple.index`
    tokens: Tensor | None


@dataclass(frozen=True)
class BatchNames:
    """Names a batch when asked; until then it costs no wait for the device."""

    samples: Sequence[Sample]
    indices: Tensor

    def __str__(self) -> str:
        return "images " + ", ".join(self.samples[i].name for i in self.indices.tolist())


@dataclass(frozen=True)
class Augmentation:
    """How a crop varies.

    Attributes:
        crop: side in pixels.
        on_target: share of crops placed around a random point; the rest lie anywhere.
        scale: zoom factors are drawn log-uniformly from [1/scale, scale]; 1 switches it off.
        gain: contrast factors are drawn log-uniformly from [1/gain, gain]; 1 switches it off.
        noise: standard deviation of added Gaussian noise, in units of intensity 1.
    """

    crop: int = 128
    on_target: float = 0.7
    scale: float = 1.0
    gain: float = 1.0
    noise: float = 0.0


class CropLoader:
    """Batches of random crops, flips and rotations; epoch e of seed s is always the same, whatever came before.

    Args:
        samples: all samples that have labels; `Batch.index` counts in this list.
        target: `target(i)` gives the current `(H, W)` pseudo-mask of sample i: bool, or soft labels in [0, 1]; or
            `(C, H, W)` maps, which are cut, turned and zoomed alike.
        pool: `pool()` gives the indices that take part now.
        batch_size: samples per batch; a last smaller batch is dropped unless it is the only one.
        augmentation: see `Augmentation`.
        normalisation: applied to every image.
        channels: of the network's input.
        tokens: `tokens(indices, crops)` gives the frozen features of a batch from sample indices and the unnormalised
            crops `(B, 1, H, W)`, or None without a teacher.
        aligned_tokens: `aligned_tokens(indices, places)` gives them from sample indices and `(B, 2, 3)` matrices, the
            `placement` of each crop; for features that are computed once per image and cut out with the crop. Not both.
        seed: seed of all randomness.
        device: where batches are put.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        target: Callable[[int], NDArray[Any]],
        pool: Callable[[], NDArray[np.int64]],
        *,
        batch_size: int,
        augmentation: Augmentation,
        normalisation: Normalisation,
        channels: int = 3,
        tokens: Callable[[Tensor, Tensor], Tensor] | None = None,
        aligned_tokens: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if tokens is not None and aligned_tokens is not None:
            raise ValueError("`tokens` and `aligned_tokens` exclude each other; give one.")
        self.samples, self.target, self.pool = samples, target, pool
        self.batch_size, self.augmentation, self.normalisation = batch_size, augmentation, normalisation
        self.tokens, self.aligned_tokens = tokens, aligned_tokens
        self.seed, self.device = seed, torch.device(device)
        self.channels = channels
        self._constants = [normalisation.constants(s.image) for s in samples]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(len(self.pool()) // self.batch_size, 1)

    def __iter__(self) -> "CropPass":
        """Batches of the current epoch."""
        return CropPass(self)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """The samples `indices` as a batch, cropped and varied at random."""
        crops = [self._crop(int(i), rng) for i in indices]
        image = torch.stack([c[0] for c in crops])
        constants = torch.tensor([self._constants[int(i)] for i in indices])
        normalised = self.normalisation(image, constants, self.channels).to(self.device)
        target = torch.stack([c[1] for c in crops]).to(self.device)
        index = torch.as_tensor(indices)
        tokens = None
        if self.tokens is not None:
            tokens = self.tokens(index, image.to(self.device))
        elif self.aligned_tokens is not None:
            tokens = self.aligned_tokens(index, torch.stack([c[2] for c in crops])).to(self.device)
        return Batch(normalised, target, index.to(self.device), tokens)

    def _crop(self, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        a = self.augmentation
        sample, mask = self.samples[i], self.target(i)
        side = a.crop if a.scale == 1.0 else round(a.crop * a.scale ** rng.uniform(-1, 1))
        image, mask = _reflect_to(sample.image, side), _reflect_to(mask, side)
        focus = self._focus(sample, rng)
        corner = [_place(image.shape[axis], side, None if focus is None else int(focus[axis]), rng) for axis in (0, 1)]
        window = (slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side))
        x = torch.from_numpy(np.ascontiguousarray(image[window]))[None]
        y = torch.from_numpy(np.ascontiguousarray(mask[..., *window])).float()
        y = y if y.ndim == 3 else y[None]
        if side != a.crop:
            size = (a.crop, a.crop)
            x = F.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=side > a.crop)[0]
            y = F.interpolate(y[None], size, mode="bilinear", align_corners=False, antialias=side > a.crop)[0]
            if mask.dtype == bool:
                y = (y >= 0.5).float()
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        x, y = torch.rot90(x, turns, (1, 2)), torch.rot90(y, turns, (1, 2))
        if flip:
            x, y = x.flip(2), y.flip(2)
        if a.gain != 1.0:
            factor = a.gain ** rng.uniform(-1, 1)
            x = (x - x.mean()) * factor + x.mean()
        if a.noise > 0.0:
            noise = rng.standard_normal(x.shape, dtype=np.float32)
            x = x + torch.from_numpy(noise) * (a.noise * rng.uniform())
        return x, y, placement(corner, side, a.crop, turns, flip)

    def _focus(self, sample: Sample, rng: np.random.Generator) -> NDArray[np.int64] | None:
        if len(sample.points) == 0 or rng.uniform() >= self.augmentation.on_target:
            return None
        return np.asarray(sample.points[rng.integers(len(sample.points))])


class CropPass(Iterator[Batch]):
    """One pass of a `CropLoader`, over the samples that took part when it began; it can be saved and restored.

    Args:
        loader: makes the batches.
    """

    def __init__(self, loader: CropLoader) -> None:
        self.loader = loader
        self._rng = np.random.default_rng((loader.seed, loader.epoch))
        self._order = self._rng.permutation(loader.pool())
        self._next = 0

    def __next__(self) -> Batch:
        size = self.loader.batch_size
        if self._next >= max(len(self._order) // size, 1):
            raise StopIteration
        self._next += 1
        return self.loader.batch(self._order[(self._next - 1) * size : self._next * size], self._rng)

    def state_dict(self) -> dict[str, Any]:
        """The order of the samples, the next batch's number, and the state of the random generator."""
        return {"order": torch.from_numpy(self._order), "next": self._next, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self._order, self._next = state["order"].numpy(), int(state["next"])
        self._rng.bit_generator.state = state["rng"]


def placement(corner: Sequence[int], side: int, crop: int, turns: int, flip: bool) -> Tensor:
    """Where the pixels of a crop lie in its image: the affine map `(row, column) -> M[:, :2] (row, column) + M[:, 2]`.

    Pixel centres are whole numbers on both sides, so a zoomed crop has its pixels at broken places of the image.

    Args:
        corner: first row and column of the window in the image.
        side: of the window in pixels.
        crop: side that the window was resized to.
        turns: quarter turns that followed, as `numpy.rot90` counts them.
        flip: whether the columns were reversed at last.

    Returns:
        M, `(2, 3)` float64. A crop of a mirrored image (`_reflect_to`) has places beyond its last row or column.
    """
    last = float(crop - 1)
    whole = np.eye(3)
    if flip:
        whole = np.array([[1, 0, 0], [0, -1, last], [0, 0, 1]]) @ whole
    for _ in range(turns):  # pixel (r, c) of a turned picture was (c, last - r)
        whole = np.array([[0, 1, 0], [-1, 0, last], [0, 0, 1]]) @ whole
    zoom = side / crop
    shift = [start + 0.5 * zoom - 0.5 for start in corner]
    return torch.from_numpy(np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]) @ whole)


def _place(length: int, side: int, focus: int | None, rng: np.random.Generator) -> int:
    """Start of a window of `side` in `length` pixels: anywhere, or anywhere that holds `focus`."""
    low, high = 0, length - side
    if focus is not None:
        low, high = max(focus - side + 1, 0), min(focus, length - side)
    return int(rng.integers(low, max(high, low) + 1))


def _reflect_to(array: NDArray[T], side: int) -> NDArray[T]:
    """Mirror an image or mask `(..., H, W)` at its far borders until both sides reach `side`."""
    while min(array.shape[-2:]) < side:
        missing = [(0, min(max(side - n, 0), n - 1)) for n in array.shape[-2:]]
        array = np.pad(array, [(0, 0)] * (array.ndim - 2) + missing, mode="reflect")
    return array
