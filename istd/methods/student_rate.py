"""The learning rate of the student's own outer step."""

from typing import Any

from bilevel import Callback


class StudentRate(Callback):
    """Keep the outer step on shared weights at a fraction of the inner learning rate.

    A constant rate would, at the end of a decaying schedule, undo with a few outer steps what the small inner ones
    settle.

    Args:
        fraction: of the current inner rate.
        group: which parameter group of the outer optimizer holds the shared weights.
    """

    def __init__(self, fraction: float, group: int) -> None:
        self.fraction, self.group = fraction, group

    def on_inner_step(self, trainer: Any, epoch: int, step: int) -> None:
        """Follow the inner rate."""
        rate = self.fraction * trainer.inner_optimizer.param_groups[0]["lr"]
        trainer.outer_optimizer.param_groups[self.group]["lr"] = rate
