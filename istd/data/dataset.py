"""The records of the data room: a sample, where a set came from, and a dataset of three splits."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from istd.data.masks import read_mask
from istd.data.points import Points
from istd.data.sensor import SENSOR, SensorRange

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its point labels; the truth is a promise that only evaluation redeems.

    Attributes:
        name: file name without extension, after its folders where the images lie in several (`seq1/0001`).
        image: `(H, W)` float32 in [0, 1].
        points: `(n, 2)` rows and columns; n = 0 is legal.
        mask_source: where the true mask lies: a path, an array (synthetic scenes), or None.
        set_name: the set that it belongs to, where a dataset is made of several.
    """

    name: str
    image: NDArray[np.float32]
    points: Points
    mask_source: Path | NDArray[np.bool_] | None = field(default=None, repr=False)
    set_name: str = ""

    def truth(self) -> NDArray[np.bool_] | None:
        """The true mask `(H, W)`, or None if there is none. For evaluation only.

        Raises:
            FileNotFoundError: if the mask's file is gone.
            ValueError: if the mask's size differs from the image's, or it cannot be a mask (see `istd.data.masks`).
        """
        if self.mask_source is None:
            return None
        mask = read_mask(self.mask_source) if isinstance(self.mask_source, Path) else self.mask_source
        if mask.shape != self.image.shape:
            raise ValueError(
                f"Image {self.name!r} is {size_of(self.image)} but its mask {self.mask_source} is {size_of(mask)}; "
                "both must have the same size."
            )
        return mask


@dataclass(frozen=True)
class Origin:
    """Where a set came from and by which rules it was read: what a run records and a command prints.

    Attributes:
        set_name: of the set.
        layout: the published layout that the folder was read as.
        train: the list, folder or rule that gave the training images; empty if they were not read.
        val: likewise, the validation images.
        test: likewise, the test images.
        random_split: whether the test images are a random draw, because no list names them: such results compare with
            no published ones.
        points: where the points come from.
        masks: where the true masks lie and how they were read; empty if there are none.
    """

    set_name: str
    layout: str
    train: str
    val: str
    test: str
    random_split: bool
    points: str
    masks: str

    def __str__(self) -> str:
        if self.random_split:
            splits = f"RANDOM SPLIT ({self.test}): NO LIST NAMES THE TEST IMAGES"
        else:
            splits = "; ".join(f"{split} {named}" for split in SPLITS if (named := getattr(self, split)))
        masks = self.masks or "none"
        return f"{self.set_name} ({self.layout}): {splits}. Points: {self.points}. Masks: {masks}."


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of samples, under a name.

    Attributes:
        name: shown in tables; a union's is its sets' names joined by `+`.
        train: training samples.
        val: validation samples.
        test: test samples; may be empty (sets that are published for training only).
        origins: where each set came from; empty for scenes rendered in memory.
        sensor: how the images' raw values became intensities; an exported student carries it.
    """

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    origins: tuple[Origin, ...] = ()
    sensor: SensorRange = SENSOR

    @property
    def has_truth(self) -> bool:
        """Whether there is a test split and every sample in it has a true mask; nothing else needs one."""
        return bool(self.test) and all(s.mask_source is not None for s in self.test)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of all splits, in the order train, val, test."""
        return self.train + self.val + self.test

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Plain data on where each set came from, for metrics.json."""
        return [asdict(origin) for origin in self.origins]

    def digest(self) -> str:
        """What the dataset holds, as 32 hexadecimal digits: two datasets of one digest train and score alike.

        It covers, in order, every split's name and its samples: name, size and pixels of the image as read, points, and
        the mask (the bytes of its file, which is not decoded; or the array). It does not cover the dataset's own name
        or place, so a folder that was moved or renamed is still the same data.

        Computed once, at about 1 GB of pixels a second; unlike `hash`, equal in every process and on every machine.

        Raises:
            OSError: if a mask's file is gone.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            samples: tuple[Sample, ...] = getattr(self, split)
            whole.update(f"{split} {len(samples)};".encode())
            for sample in samples:
                for part in _content(sample):
                    whole.update(f"{len(part)}:".encode())  # lengths keep neighbouring parts apart
                    whole.update(part)
        return whole.hexdigest()


def positions_by_set(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Which positions in a list of samples belong to which set; a single entry unless several sets were joined.

    Example:
        >>> one = np.zeros((16, 16), np.float32)
        >>> positions_by_set([Sample(n, one, np.zeros((0, 2), np.int64), set_name=s) for n, s in ("ax", "by", "cx")])
        {'x': [0, 2], 'y': [1]}
    """
    found: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        found.setdefault(sample.set_name, []).append(i)
    return found


def size_of(array: NDArray[np.generic]) -> str:
    """The size of an image, as messages show it."""
    return f"{array.shape[1]}x{array.shape[0]} (width x height)"


def _content(sample: Sample) -> Iterator[bytes | memoryview]:
    """The parts of a sample that its digest covers."""
    yield sample.name.encode(errors="surrogateescape")  # file names need not be text
    yield str(sample.image.shape).encode()
    yield np.ascontiguousarray(sample.image).astype("<f4", copy=False).data.cast("B")
    yield np.ascontiguousarray(sample.points).astype("<i8", copy=False).tobytes()
    if isinstance(sample.mask_source, Path):
        yield sample.mask_source.read_bytes()
    elif sample.mask_source is not None:
        yield np.ascontiguousarray(sample.mask_source, dtype=bool).tobytes()
    else:
        yield b"no mask"
