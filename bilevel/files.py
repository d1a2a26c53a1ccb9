"""Files that survive: written whole or not at all, by one process at a time, and without leftovers."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: leftovers are not swept there
    fcntl = None

TEMPORARY = ".bilevel-"  # begins the names of our temporary files; they are short, whatever the name of the target
LOCK_WAIT = 6.0  # seconds; a killed process's data loading workers hold its locks until they notice, within 5 s
_swept: set[Path] = set()


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


class FileInUseError(OSError):
    """Another trainer is at work on the same file."""


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that `path` holds either its old content or all of the new one, even after a power cut.

    The content goes to a temporary file in the same folder, is flushed to disk and renamed over `path`; then the folder
    is flushed too. If writing fails (a full disk, an interruption), the temporary file is removed and the old content
    stays. What a killed process has left in the folder goes at the first write of the next one (see `sweep`).

    Args:
        path: the file to replace.
        write: called with the open binary file.

    Raises:
        OSError: naming `path`, if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.parent.resolve()
        if folder not in _swept:
            sweep(folder)
            _swept.add(folder)
        _replace(path, write)
    except BaseException as error:
        if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, NotImplementedError):
            # torch.save reports a full disk as RuntimeError.
            raise OSError(
                f"Could not write {path} ({error}); the previous file, if any, is untouched. Is the disk full?"
            ) from error
        raise
    _flush_folder(path.parent)


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    handle, name = _open_temporary(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp's files are private
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, path)  # while the file is open: its lock shows other processes that it has an owner
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _open_temporary(folder: Path) -> tuple[int, str]:
    """A new temporary file, locked by this process for as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY, suffix=".tmp")
        if _lock(handle) is False or os.fstat(handle).st_nlink == 0:
            os.close(handle)  # swept between its creation and its lock
            continue
        return handle, name


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files of writers that no longer live, and return their paths.

    Every writer holds a lock of the operating system on its file, which ends with its process, however that ends: a
    file of ours that can be locked has no owner. File systems without such locks keep their leftovers.
    """
    removed = []
    for path in folder.glob(f"{TEMPORARY}*.tmp"):
        with suppress(OSError):  # gone meanwhile, or not ours to open
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle):
                    path.unlink()
                    removed.append(path)
            finally:
                os.close(handle)
    return removed


def _lock(handle: int) -> bool | None:
    """Whether the file could be locked; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename durable: it is an entry of the folder, which has its own place in the cache."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened on every system
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # systems that flush no folders
            raise
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Within this context no other process, and no other trainer in this one, may be at work on `path`.

    The lock belongs to the operating system and ends with the process, however that ends. It lies in a small hidden
    file beside `path`, which stays: removing it would let two processes lock two different files of one name.

    Raises:
        FileInUseError: if another has it.
        OSError: if the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(path.name.encode()).hexdigest()[:16]  # short: `path.name` may be as long as names can be
    lock = filelock.FileLock(path.parent / f"{TEMPORARY}{name}.lock", timeout=LOCK_WAIT)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise FileInUseError(
            f"Another trainer is at work on {path}; wait until it has ended, or give this one another file."
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
