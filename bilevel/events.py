"""Callbacks that a trainer calls, and two that most runs want: a progress bar, and signals that wait for the step."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from bilevel.deprecation import moved_names
from bilevel.results import Hypergradient

__all__ = ["Callback", "ProgressBar", "StopBetweenSteps"]


class Callback:
    """What a trainer calls as it goes; override what you need.

    A callback that has `state_dict` and `load_state_dict` is checkpointed, under its name. `trainer` is the
    `BilevelTrainer`; epochs count from 1, steps of an epoch from 0.

    Attributes:
        name: the key of its state in a checkpoint; None takes the name of the class.
    """

    name: str | None = None

    def on_fit_start(self, trainer: Any) -> None:
        """Called once, before the first epoch."""

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Called after every inner optimizer step."""

    def on_outer_step(self, trainer: Any, epoch: int, step: int, hypergradient: Hypergradient) -> None:
        """Called after every outer optimizer step."""

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Called after the epoch's outer steps and before its checkpoint; may add to `metrics`."""

    def on_fit_end(self, trainer: Any) -> None:
        """Called once, also after an interruption or an error of another callback."""


def notify(callbacks: Iterable[Any], event: str, *args: Any) -> None:
    """Call `event` on every callback in order; an object that is no `Callback` may lack some of the methods."""
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(*args)


@contextmanager
def ended(callbacks: Iterable[Any], trainer: Any) -> Iterator[None]:
    """Afterwards call `on_fit_end` on every callback, whatever has been raised, in the context or by another callback.

    The first exception is raised again in the end; its notes tell of those after it.
    """
    first: BaseException | None = None
    try:
        yield
    except BaseException as error:
        first = error
    for callback in callbacks:
        try:
            notify([callback], "on_fit_end", trainer)
        except BaseException as error:
            if first is None:
                first = error
            else:
                first.add_note(f"After that, {type(callback).__name__}.on_fit_end raised {error!r}.")
    if first is not None:
        raise first


def stateful(callbacks: Iterable[Any]) -> dict[str, Any]:
    """The callbacks that have a state, by name.

    Raises:
        ValueError: if two of them have the same name.
    """
    found: dict[str, Any] = {}
    for callback in callbacks:
        if not hasattr(callback, "state_dict"):
            continue
        name = getattr(callback, "name", None)
        name = name if isinstance(name, str) else type(callback).__name__
        if name in found:
            raise ValueError(
                f"Two callbacks with a state are called {name!r}; give each an attribute `name`, by which a checkpoint "
                "tells them apart."
            )
        found[name] = callback
    return found


class ProgressBar(Callback):
    """A tqdm bar over epochs with the latest metrics.

    Args:
        description: text before the bar.
    """

    def __init__(self, description: str = "training") -> None:
        self.description = description
        self._bar: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        """Open the bar at the number of finished epochs."""
        self._bar = tqdm(total=trainer.total_epochs, initial=trainer.epoch, desc=self.description, unit="epoch")

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Advance by one epoch."""
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
            self._bar.update(1)

    def on_fit_end(self, trainer: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class StopBetweenSteps(Callback):
    """Make Ctrl-C raise `KeyboardInterrupt`, and SIGTERM `SystemExit`, between two steps instead of inside one.

    Python raises an interrupt at any bytecode: inside a finaliser, where it is swallowed and training goes on, or in
    native code, where it comes out as another error; and SIGTERM, which the schedulers of clusters send before they
    kill, ends the process on the spot. During `fit`, the first of either therefore waits for the end of the running
    step; a second one is immediate. The checkpoint of the last finished epoch is on disk in any case; `SystemExit`
    carries 143, the code of a process that SIGTERM has ended. Outside the main thread, and where a signal is ignored
    (interrupts in a shell's background job) or has another handler already, this callback leaves it alone.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Any) -> None:
        """Take over the signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._asked = None
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._asked is not None:
            _stop(number)
        self._asked = number

    def _stop_if_asked(self) -> None:
        if self._asked is not None:
            number, self._asked = self._asked, None
            _stop(number)

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Stop here if asked to."""
        self._stop_if_asked()

    def on_outer_step(self, trainer: Any, epoch: int, step: int, hypergradient: Hypergradient) -> None:
        """Stop here if asked to."""
        self._stop_if_asked()

    def on_fit_end(self, trainer: Any) -> None:
        """Give the signals back; a request that came after the last step is passed on."""
        while self._before:
            signal.signal(*self._before.popitem())
        self._stop_if_asked()


def _stop(number: int) -> None:
    if number == signal.SIGTERM:
        raise SystemExit(128 + number)
    raise KeyboardInterrupt


__getattr__ = moved_names(__name__)
