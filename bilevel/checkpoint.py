"""Checkpoints: plain data with a digest, written atomically and read without executing code."""

import hashlib
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel.files import FileInUseError, exclusive, write_atomically

__all__ = [
    "CheckpointFile",
    "ResumeWarning",
    "digest",
    "load_checkpoint",
    "plain",
    "save_checkpoint",
    "write_atomically",
]


class ResumeWarning(UserWarning):
    """A run that goes on from a checkpoint will not be, or could not be checked to be, the run that was stopped."""


def save_checkpoint(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write a state atomically, with a digest of its content.

    Args:
        path: the file.
        state: tensors, numbers, strings, None, and dicts, lists and tuples of them; numpy numbers become Python's.

    Raises:
        TypeError: for anything else, by its place; nothing is written.
        OSError: if the file cannot be written.
    """
    content = plain(state)
    signed = {"digest": digest(content), "state": content}
    write_atomically(path, lambda file: torch.save(signed, file))


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; pickled code in it is refused, and so is content that differs from its digest.

    Args:
        path: the file.
        device: where to put the tensors.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, or holds anything but a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error}).") from error
    if isinstance(found, dict) and found.get("format") == 1 and "digest" not in found:
        warnings.warn(
            f"{path} comes from an earlier version and carries no digest: whether it is intact cannot be checked.",
            ResumeWarning,
            stacklevel=2,
        )
        return found
    if not isinstance(found, dict) or found.keys() != {"digest", "state"} or not isinstance(found["state"], dict):
        raise ValueError(f"{path} is not a readable checkpoint: it holds no state with its digest.")
    try:
        intact = digest(found["state"]) == found["digest"]
    except TypeError:
        intact = False
    if not intact:
        raise ValueError(
            f"{path} is damaged: its content differs from the digest it was written with. Use an earlier copy."
        )
    state: dict[str, Any] = found["state"]
    return state


class CheckpointFile:
    """The file of one trainer: locked while it trains, and refused where another has written it since.

    Args:
        path: the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._known: tuple[int, ...] | None = None  # the file as it was last read or written here

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context the file is this trainer's alone.

        Raises:
            FileInUseError: if another one has it, or has written it since this one read or wrote it.
        """
        with exclusive(self.path):
            if self._known is not None and self._stamp() != self._known:
                raise FileInUseError(
                    f"Another trainer has written {self.path} since this one did; resume() takes its state over."
                )
            yield

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state; see `save_checkpoint`."""
        save_checkpoint(self.path, state)
        self._known = self._stamp()

    def load_into(self, load: Callable[[dict[str, Any]], object]) -> bool:
        """Pass what the file holds to a function; return whether there is one."""
        if not self.path.is_file():
            return False
        stamp = self._stamp()
        load(load_checkpoint(self.path))
        self._known = stamp
        return True

    def _stamp(self) -> tuple[int, ...]:
        """What changes whenever a file is replaced; nothing of one that is gone."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            return ()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size


def plain(value: Any, place: str = "state") -> Any:
    """The same data with tensors on the CPU and Python's numbers in place of numpy's.

    Raises:
        TypeError: if there is anything in it that a checkpoint cannot hold, named by its place.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        items = {_key(k, place): plain(v, f"{place}[{k!r}]") for k, v in value.items()}
        if not isinstance(value, OrderedDict):
            return items
        ordered = OrderedDict(items)
        if hasattr(value, "_metadata"):  # versions of modules, which decide how their state is read
            ordered._metadata = value._metadata  # type: ignore[attr-defined]
        return ordered
    if isinstance(value, (list, tuple)):
        parts = [plain(v, f"{place}[{i}]") for i, v in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, (int, float, str)):  # subclasses, such as enumerations of numbers
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    raise TypeError(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, None, and dicts, lists "
        "and tuples of them."
    )


def _key(key: Any, place: str) -> Any:
    if type(key) in (str, int, float, bool) or key is None:
        return key
    if isinstance(key, tuple):
        return tuple(_key(k, place) for k in key)
    raise TypeError(f"{place} has the key {key!r}, a {type(key).__name__}; keys are strings, numbers or tuples.")


def digest(content: Any) -> str:
    """SHA-256 of plain data: of its structure, keys, types, shapes and every bit of its numbers, in order."""
    sha = hashlib.sha256()

    def feed(kind: str, data: Any = b"") -> None:
        sha.update(f"{kind}:{len(data)}:".encode())
        sha.update(data)

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            dense = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
            flat = dense.resolve_conj().resolve_neg().reshape(-1)
            # Bytes need a stride of one, which a vector of one number or none can lack and still be contiguous.
            flat = flat if flat.stride() == (1,) else torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
            feed(f"tensor {value.dtype} {tuple(value.shape)}", flat.view(torch.uint8).numpy())
        elif isinstance(value, Mapping):
            feed(f"dict {len(value)}")
            for key, item in value.items():
                walk(key)
                walk(item)
            walk(getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple)):
            feed(f"{type(value).__name__} {len(value)}")
            for item in value:
                walk(item)
        elif isinstance(value, float):
            feed("float", struct.pack("<d", value))
        elif value is None or isinstance(value, (bool, int, str, bytes)):
            feed(type(value).__name__, value if isinstance(value, bytes) else str(value).encode())
        else:
            raise TypeError(f"{type(value).__name__} is no plain data")

    walk(content)
    return sha.hexdigest()
