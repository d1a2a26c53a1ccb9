"""How a trainer draws batches: whole epochs for training, and walks that go on between the outer phases."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from bilevel.checkpoint import ResumeWarning, digest
from bilevel.generators import (
    generator_states,
    random_state,
    restore_generators,
    restore_random_state,
    untouched,
)


def set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Tell an iterable, or a DataLoader's sampler, which epoch comes next, if it has `set_epoch`."""
    for part in (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)):
        setter = getattr(part, "set_epoch", None)
        if setter is not None:
            setter(epoch)
            return


def keeps_workers(batches: object) -> bool:
    """Whether a loader's worker processes live on between epochs, with random states that nobody can read."""
    return isinstance(batches, DataLoader) and batches.num_workers > 0 and batches.persistent_workers


class Walk:
    """An endless walk through an iterable: each call goes on where the last one stopped, so that all have their turn.

    A sequence is walked by index. Any other iterable is gone through pass by pass; when a pass begins, the walk calls
    `set_epoch` with the epoch at hand, if there is one, and notes the state of all random generators; later on it notes
    those of the iterable's own wherever they are drawn from. A restored walk draws the begun pass again from those
    states up to its position (each batch is loaded once more; the generators end up as they were), or, where the
    iterator itself has `state_dict` and `load_state_dict`, hands its state back to it.

    Args:
        batches: a sequence, a DataLoader or another iterable.
        name: what to call it in errors.
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self.name = name
        self.batches = batches
        if keeps_workers(batches):  # its one iterator serves the training epochs: the walk takes a loader of its own
            self.batches = copy.copy(batches)
            self.batches._iterator = None  # type: ignore[attr-defined]
        self._position = 0
        self._pass: dict[str, Any] | None = None  # how the begun pass began
        self._iterator: Iterator[Any] | None = None  # None while no pass is begun, or a restored one is yet to be drawn

    def take(self, n: int, epoch: int) -> list[Any]:
        """The next `n` batches.

        Args:
            n: how many.
            epoch: number for `set_epoch` of a pass that begins now.

        Raises:
            ValueError: if the iterable is empty, or an iterator that is used up.
        """
        if isinstance(self.batches, Sequence):
            if not self.batches:
                raise ValueError(f"`{self.name}` is empty.")
            found = [self.batches[(self._position + i) % len(self.batches)] for i in range(n)]
            self._position = (self._position + n) % len(self.batches)
            return found
        begun, states = self._pass, generator_states(self.batches)
        position = self._position
        found = [self._next(epoch) for _ in range(n)]
        if begun is not None and begun is self._pass and not _equal(states, generator_states(self.batches)):
            # The iterator draws as it goes, and from generators that training epochs draw from as well.
            begun["draws"].append({"position": position, "generators": states})
        return found

    def _next(self, epoch: int) -> Any:
        for _ in range(2):  # the second time in a new pass
            if self._iterator is None:
                self._iterator = self._begin(epoch) if self._pass is None else self._again(self._pass)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = self._pass = None
                self._position = 0
                continue
            self._position += 1
            return batch
        kind = "an iterator that is used up; give a list or a loader" if iter(self.batches) is self.batches else "empty"
        raise ValueError(f"`{self.name}` is {kind}.")

    def _begin(self, epoch: int) -> Iterator[Any]:
        generators = generator_states(self.batches)
        self._pass = {"epoch": epoch, "random": random_state(), "generators": generators, "draws": []}
        set_epoch(self.batches, epoch)
        return iter(self.batches)

    def _again(self, begun: Mapping[str, Any]) -> Iterator[Any]:
        """The iterator of a pass that was begun in another process, at its position."""
        with untouched(self.batches):
            restore_random_state(begun["random"])
            restore_generators(self.batches, begun["generators"])
            set_epoch(self.batches, begun["epoch"])
            iterator: Any = iter(self.batches)
            if "iterator" in begun:
                iterator.load_state_dict(begun["iterator"])
                return iterator  # type: ignore[no-any-return]
            draws = {draw["position"]: draw["generators"] for draw in begun["draws"]}
            for i in range(self._position):
                if i in draws:
                    restore_generators(self.batches, draws[i])
                try:
                    next(iterator)
                except StopIteration:
                    raise ValueError(
                        f"`{self.name}` gave {i} batches, but the checkpoint is at number {self._position} of the "
                        "pass; resume with the same data and batch size."
                    ) from None
        return iterator  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """Its position, and how the begun pass began."""
        begun = None if self._pass is None else {**self._pass, "draws": list(self._pass["draws"])}
        iterator: Any = self._iterator
        if begun is not None and hasattr(iterator, "state_dict") and hasattr(iterator, "load_state_dict"):
            begun = begun | {"iterator": iterator.state_dict()}
        return {"position": self._position, "pass": begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`; the pass is drawn again when the next batch is asked for."""
        self._position, self._iterator = state["position"], None
        begun = state["pass"]  # earlier versions noted no draws
        self._pass = None if begun is None else {**begun, "draws": list(begun.get("draws", ()))}
        if keeps_workers(self.batches):
            warnings.warn(
                f"`{self.name}` keeps its worker processes (persistent_workers=True), and no checkpoint can hold their "
                "random states: the resumed run draws other numbers. Set persistent_workers=False to resume exactly.",
                ResumeWarning,
                stacklevel=4,
            )


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two results of `generator_states` are the same."""
    return digest(a) == digest(b)
