"""Features of samples: collected from a loader, kept in an HDF5 file, checked before they are clustered."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from bilevel.checkpoint import write_atomically


def as_matrix(features: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Features as a float64 matrix `(samples, features)`.

    Raises:
        ValueError: if it is not a matrix with at least one row, or holds a value that is not finite.
    """
    x = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"`features` must be a matrix (samples, features), got shape {x.shape}.")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise ValueError(f"`features` holds a value that is not finite, first in row {row}; drop or impute it.")
    return x


@torch.no_grad()
def collect_features(
    extract: Callable[[Any], Tensor], batches: Iterable[Any], progress: bool = True
) -> NDArray[np.float32]:
    """Run a feature extractor over a loader.

    Args:
        extract: `extract(batch) -> (B, d)` or `(B, ...)`, which is flattened: a frozen model's embedding, say.
        batches: batches of all samples in the order of their indices (no shuffling).
        progress: show a progress bar.

    Returns:
        `(N, d)`.

    Raises:
        ValueError: if `batches` is empty.
    """
    parts = [extract(b).detach().flatten(1).float().cpu() for b in tqdm(batches, "features", disable=not progress)]
    if not parts:
        raise ValueError("`batches` gave no batch.")
    return torch.cat(parts).numpy()


def save_features(path: Path | str, features: ArrayLike | Tensor, names: Sequence[str] | None = None) -> None:
    """Write features, and the samples' names if given, to an HDF5 file, atomically.

    Raises:
        ValueError: if `features` is not a finite matrix, or `names` has another length.
    """
    import h5py

    x = as_matrix(features)
    if names is not None and len(names) != len(x):
        raise ValueError(f"`names` has {len(names)} entries for {len(x)} rows of `features`.")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=x.astype(np.float32), compression="gzip")
        if names is not None:
            file.create_dataset("names", data=list(names), dtype=h5py.string_dtype())
    write_atomically(path, lambda out: out.write(buffer.getvalue()))


def load_features(path: Path | str, names: Sequence[str] | None = None) -> NDArray[np.float32]:
    """Read a file of `save_features`.

    Args:
        path: the file.
        names: the samples wanted, in this order; None gives all rows as written.

    Raises:
        ValueError: if the file holds no features, or lacks one of `names`; the message names it.
    """
    import h5py

    with h5py.File(path, "r") as file:
        if "features" not in file:
            raise ValueError(f"{path} holds no `features`.")
        x = np.asarray(file["features"], dtype=np.float32)
        if names is None:
            return x
        if "names" not in file:
            raise ValueError(f"{path} holds features without names; load all rows, or save them with `names`.")
        rows = {name: i for i, name in enumerate(file["names"].asstr()[:])}
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(f"{path} has no features of {missing[0]!r} ({len(missing)} of {len(names)} are missing).")
    return x[[rows[name] for name in names]]
