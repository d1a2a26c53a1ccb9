"""Work in a run's folder: one process at a time, and an old run is kept until the new one has finished an epoch."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bilevel.files import exclusive
from istd.runs.folder import ASIDE, FILES, RunFolder


def holds_run(out: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return RunFolder(out).holds_run()


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that does not fit what is to be done with it; nothing is changed.

    Raises:
        FileExistsError: if it holds a run and neither `resume` nor `overwrite` was given.
        FileNotFoundError: if there is nothing to resume.
        NotADirectoryError: if it is a file.
        ValueError: if both `resume` and `overwrite` were given.
    """
    if resume and overwrite:
        raise ValueError("`--resume` and `--overwrite` exclude each other; drop one.")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"`--out {out}` is a file; a run needs a folder.")
    there = holds_run(out) or holds_run(out / ASIDE)
    if resume and not there:
        raise FileNotFoundError(f"{out} holds no run to resume; drop --resume to start one there.")
    if there and not resume and not overwrite:
        raise FileExistsError(
            f"{out} holds a run already; continue it with --resume, replace it with --overwrite, or choose another "
            "--out."
        )


class HeldFolder:
    """Holds a run's folder while a process works in it, and puts back what it replaces if that comes to nothing.

    A context manager, and a callback of the trainer: with `overwrite`, the files of the old run lie in a hidden folder
    until the new run has finished an epoch. If the new run fails before that, they return; if it is killed, they return
    when the folder is next entered. The lock belongs to the operating system and ends with its process.

    Args:
        out: the folder; made if it does not exist.
        resume: go on with the run that lies there.
        overwrite: replace it.

    Raises:
        FileInUseError: on entering, if another process is at work there.
        FileExistsError, FileNotFoundError, NotADirectoryError, ValueError: on entering; see `check_folder`.
    """

    def __init__(self, out: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.out, self.resume, self.overwrite = out, resume, overwrite
        self._aside = out / ASIDE
        self._held = ExitStack()

    def __enter__(self) -> "HeldFolder":
        check_folder(self.out, self.resume, self.overwrite)
        self._held.enter_context(exclusive(self.out / "run"))
        try:
            check_folder(self.out, self.resume, self.overwrite)  # what another process did before it let go
            if self._aside.exists() and not (self.resume and (self.out / "checkpoint.pt").exists()):
                self._put_back()
            if self.overwrite:
                _move(self.out, self._aside)
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if error is not None and self._aside.exists():
                self._put_back()
        finally:
            self._held.close()

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Let the old run go once the checkpoint of a finished epoch is on disk."""
        if epoch > 1:
            self.settle()

    def settle(self) -> None:
        """The new run stands: remove what it has replaced."""
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def _put_back(self) -> None:
        for name in FILES:
            (self.out / name).unlink(missing_ok=True)
        _move(self._aside, self.out)
        shutil.rmtree(self._aside)


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).exists():
            (source / name).replace(target / name)
