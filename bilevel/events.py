"""Hooks that a trainer calls, and two that most runs want: a progress bar, and a Ctrl-C that waits for the step."""

import signal
import threading
from typing import Any, Protocol

from tqdm import tqdm


class Hook(Protocol):
    """Anything with some of these methods; a hook that has `state_dict` and `load_state_dict` is checkpointed.

    `trainer` is the `BilevelTrainer`; epochs count from 1.
    """

    def on_fit_start(self, trainer: Any) -> None:
        """Called once, before the first epoch."""

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Called after every inner optimizer step."""

    def on_outer_step(self, trainer: Any, epoch: int, step: int, hypergradient: Any) -> None:
        """Called after every outer optimizer step."""

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Called after the epoch's outer steps and before its checkpoint; may add to `metrics`."""

    def on_fit_end(self, trainer: Any) -> None:
        """Called once, also after an interruption."""


def call_hooks(hooks: list[Any], event: str, *args: Any) -> None:
    """Call `event` on every hook that has it, in order."""
    for hook in hooks:
        method = getattr(hook, event, None)
        if method is not None:
            method(*args)


class ProgressBar:
    """A tqdm bar over epochs with the latest metrics.

    Args:
        description: text before the bar.
    """

    def __init__(self, description: str = "training") -> None:
        self.description = description
        self._bar: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        """Open the bar at the epoch where training stands."""
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


class StopBetweenSteps:
    """Make Ctrl-C raise `KeyboardInterrupt` between two steps instead of in the middle of one.

    Python raises it at any bytecode: inside a finaliser, where it is swallowed and training goes on, or inside native
    code, where it comes out as another error. During `fit`, the first Ctrl-C therefore waits for the end of the running
    step; a second one is immediate. Outside the main thread, and where interrupts are ignored (a shell's background
    job), this hook does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        """Take over the interrupt signal."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._asked = False
            self._before = signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _stop_if_asked(self) -> None:
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Stop here if asked to."""
        self._stop_if_asked()

    def on_outer_step(self, trainer: Any, epoch: int, step: int, hypergradient: Any) -> None:
        """Stop here if asked to."""
        self._stop_if_asked()

    def on_fit_end(self, trainer: Any) -> None:
        """Give the interrupt signal back; a request that came after the last step is passed on."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
            self._stop_if_asked()
