"""When an outer step is due."""

from dataclasses import dataclass

from bilevel.deprecation import renamed


@renamed
@dataclass(frozen=True)
class Schedule:
    """`steps` outer steps after every `every`-th epoch, from epoch `start` on (epochs count from 1).

    Attributes:
        every: period in epochs.
        steps: outer steps per due epoch, each on fresh batches.
        start: first epoch that may be followed by outer steps.
        inner_batches_per_step: inner batches of each outer step: an unroll takes one per inner step, implicit methods
            average over them.

    Example:
        >>> [epoch for epoch in range(1, 12) if Schedule(every=5, start=2).due(epoch)]
        [5, 10]
    """

    every: int = 1
    steps: int = 1
    start: int = 1
    inner_batches_per_step: int = 1

    def __post_init__(self) -> None:
        for name in ("every", "steps", "start", "inner_batches_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def due(self, epoch: int) -> bool:
        """Whether outer steps follow this epoch."""
        return epoch >= self.start and epoch % self.every == 0
