"""The moving average of a network's weights, which is what gets evaluated and exported."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bilevel import Callback


class EMA(Callback):
    """Exponential moving average of a module's parameters and buffers, updated after every inner step.

    The decay grows as `min(decay, (1 + n) / (10 + n))` with the number of updates n, so that the random start is
    forgotten quickly (Polyak averaging with the warm-up that is usual for it).

    Args:
        module: what to average.
        decay: final decay; 0 keeps a plain copy.
    """

    name = "Averaging"  # the key of its state in checkpoints of every release

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = AveragedModel(module, multi_avg_fn=self._average, use_buffers=True)
        self._updates = 0

    @property
    def module(self) -> Any:
        """The averaged copy, in eval mode."""
        return self._model.module.eval()

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        keep = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), 1 - keep)
            else:
                old.copy_(new)

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Move the average towards the current weights."""
        self._updates += 1
        self._model.update_parameters(trainer.inner)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates."""
        return {"model": self._model.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._model.load_state_dict(state["model"])
        self._updates = state["updates"]
