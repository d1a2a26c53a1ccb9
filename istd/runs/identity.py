"""What makes a run the run that it is, besides its configuration: the data, the VFM's weights, the threads.

Digests of content are compared, never names or places: a folder that was moved is the same data, one whose images were
swapped is not.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from istd.data.dataset import SPLITS, Dataset, Sample
from istd.files import as_json
from istd.settings import Settings

DIGEST = "digest"


def data_identity(dataset: Dataset) -> dict[str, str]:
    """Digests of a dataset's images, points and splits, and of all of it together with its masks.

    They are apart so that a message can say what differs. A mask's file is not decoded: training never opens one.
    """
    samples = sorted((s for split in SPLITS for s in getattr(dataset, split)), key=lambda s: s.name)
    names = [f"{split}/{s.name}" for split in SPLITS for s in getattr(dataset, split)]
    return {
        "images": _digest(part for s in samples for part in _image(s)),
        "points": _digest(part for s in samples for part in _points(s)),
        "splits": _digest(name.encode() for name in names),
        "with_masks": dataset.digest(),
    }


def run_identity(settings: Settings, dataset: Dataset, threads: int | None = None) -> dict[str, Any]:
    """What a run must not change when it is resumed, as plain data.

    Threads count: another number of them sums in another order, and so gives another student.

    Args:
        settings: of the run.
        dataset: its data.
        threads: of PyTorch; None takes those of this process.

    Raises:
        OSError: if the file of the VFM's weights cannot be read.
    """
    file = settings.flat().get("vfm.weights")
    weights = None if file is None else Path(file)
    return {
        **data_identity(dataset),
        "threads": torch.get_num_threads() if threads is None else threads,
        "vfm_weights_digest": file_digest(weights) if weights is not None and weights.is_file() else None,
    }


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first entry, in order, in which two identities differ: `"points"`, say."""
    return next((key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)), None)


def file_digest(path: Path) -> str:
    """A digest of a file's bytes, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with a digest of itself, by which `is_sealed` finds torn and edited files."""
    bare = {key: value for key, value in content.items() if key != DIGEST}
    return {**bare, DIGEST: _digest([as_json(bare).encode()])}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether the content is what `sealed` made of it."""
    return bool(sealed(content)[DIGEST] == content.get(DIGEST))


def _image(sample: Sample) -> Iterable[bytes | memoryview]:
    yield f"{sample.name} {sample.image.shape}".encode()
    yield np.ascontiguousarray(sample.image).astype("<f4", copy=False).data.cast("B")


def _points(sample: Sample) -> Iterable[bytes]:
    yield f"{sample.name} {len(sample.points)}".encode()
    yield np.ascontiguousarray(sample.points).astype("<i8", copy=False).tobytes()


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(f"{len(part)}:".encode())  # lengths keep neighbouring parts apart
        found.update(part)
    return found.hexdigest()
