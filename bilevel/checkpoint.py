"""Checkpoints: written atomically, read without executing code, complete enough to resume exactly."""

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that `path` holds either its old content or all of the new one.

    The content goes to a temporary file in the same folder, is flushed to disk and renamed over `path`. If writing
    fails (a full disk, an interruption), the temporary file is removed and the old content stays.

    Args:
        path: the file to replace.
        write: called with the open binary file.

    Raises:
        OSError: naming `path`, if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp's files are private
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, NotImplementedError):
            # torch.save reports a full disk as RuntimeError.
            raise OSError(
                f"Could not write {path} ({error}); the previous file, if any, is untouched. Is the disk full?"
            ) from error
        raise


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings and containers of them, atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; pickled code in it is refused.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged or holds anything but data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a checkpoint.")
    return state


def random_state() -> dict[str, Any]:
    """The state of every global random generator (python, numpy, torch CPU and CUDA), as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one)
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every global random generator to a state from `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    values = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, values, position, has_gauss, cached))  # noqa: NPY002 (the global one)
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
