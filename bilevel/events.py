"""Hooks that a trainer calls, and the two that most runs want: a history and a progress bar."""

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
