"""Training that can be stopped and resumed exactly: its state, and the file that holds it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from bilevel.batches import Walk
from bilevel.checkpoint import CheckpointFile
from bilevel.training_state import collect, load


class Resumable(ABC):
    """What makes a trainer resumable.

    Args:
        walk: through the inner batches.
        checkpoint: the file, or None.
        config: plain data that identifies the run.
        state: further objects with `state_dict` and `load_state_dict`, by name.

    Attributes:
        epoch: number of finished epochs.
        history: one dict of numbers per finished epoch.
        config: plain data that identifies the run.
    """

    def __init__(
        self,
        walk: Walk,
        checkpoint: Path | str | None,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.config = dict(config or {})
        self._state = dict(state or {})
        self._walks = {"inner": walk}
        self._file = CheckpointFile(checkpoint) if checkpoint is not None else None
        self._unfinished: int | None = None  # the epoch in whose middle training was stopped

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """The trainer's own objects whose state is checkpointed, by name."""

    @abstractmethod
    def _modernised(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of an earlier version in today's format."""

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's file, if one is written."""
        return self._file.path if self._file is not None else None

    def track(self, name: str, part: Any) -> None:
        """Checkpoint one more object (with `state_dict` and `load_state_dict`) under `name`."""
        self._state[name] = part

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as plain data."""
        return collect(self._all_parts(), self._walks, self.config, self.epoch, self.history)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`; if that fails, the trainer is as it was.

        Raises:
            ValueError: if it belongs to another format or config, lacks something, or holds what this trainer has no
                place for; the message names the first difference.
        """
        state = self._modernised(state)
        load(state, self._all_parts(), self._walks, self.config)
        self.epoch, self.history = state["epoch"], [dict(entry) for entry in state["history"]]
        self._unfinished = None

    def save(self) -> None:
        """Write the checkpoint, if there is a file for it."""
        if self._file is not None:
            self._file.save(self.state_dict())

    def resume(self) -> bool:
        """Load the checkpoint if there is one; return whether there was.

        Raises:
            ValueError: if it is damaged or does not fit this trainer, which then is as it was.
        """
        return self._file is not None and self._file.load_into(self.load_state_dict)

    def _all_parts(self) -> dict[str, Any]:
        return {f"state.{name}": part for name, part in self._state.items()} | self._parts()

    def _holding_the_file(self) -> AbstractContextManager[None]:
        return self._file.held() if self._file is not None else nullcontext()

    def _kept(self) -> str:
        """Where the last checkpoint is, for an error."""
        return f"; the checkpoint of epoch {self.epoch} is kept in {self.checkpoint}" if self.checkpoint else ""

    def _refuse_the_middle_of_an_epoch(self) -> None:
        if self._unfinished is not None:
            how = "resume() goes on from the end of the epoch before" if self.checkpoint else "there is no checkpoint"
            raise RuntimeError(
                f"This trainer was stopped in the middle of epoch {self._unfinished}, so its variables are those of no "
                f"epoch: {how}; fit(..., restart_epoch=True) goes on with them as they are, inexactly."
            )
