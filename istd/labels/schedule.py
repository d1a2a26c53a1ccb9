"""When labels are updated and hard samples admitted, in epochs that are done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateSchedule:
    """Updates after epochs `first`, `first + every`, ..., at most `last`.

    Attributes:
        first: first epoch with an update, from 1 on.
        every: period in epochs.
        last: no update after this epoch.
        admit_until: last epoch whose update may admit samples.
        span: the epochs at which the tolerance of admission begins to rise and has risen to 1.
    """

    first: int
    every: int
    last: int
    admit_until: int
    span: tuple[float, float]

    def due(self, epoch: int) -> bool:
        """Whether labels are updated after this epoch."""
        return self.first <= epoch <= self.last and (epoch - self.first) % self.every == 0

    def progress(self, epoch: int) -> float:
        """How far admission has come, in [0, 1]."""
        begin, end = self.span
        return min(max((epoch - begin) / max(end - begin, 1), 0.0), 1.0)


def update_schedule(
    epochs: int, start: float = 0.2, until: float = 0.8, every: int = 5, admit_until: float = 0.8
) -> UpdateSchedule:
    """Updates from a share `start` of the epochs on, the first at that very epoch, to a share `until`."""
    first, admit = max(round(start * epochs), 1), round(admit_until * epochs)
    return UpdateSchedule(first, every, round(until * epochs), admit, (first, admit))


def published_schedule(epochs: int, start: float = 0.2, every: int = 5, admit_until: float = 0.8) -> UpdateSchedule:
    """PAL's updates: at multiples of `every` epochs that lie beyond a share `start`, to the end of training.

    The release updates before it trains the epoch of number e (from 0 on, so e are done): if `e > int(start epochs)`
    and `every` divides e; it admits up to `int(admit_until epochs)`, with a tolerance that has risen by
    `(e - start epochs + 1) / ((admit_until - start) epochs)` of its way.

    Source: Yu et al. (PAL, 2025), released training code (0.2, 0.8 and 5 of 300 epochs).
    """
    first = (int(start * epochs) // every + 1) * every
    last = (epochs - 1) // every * every
    span = (start * epochs - 1, admit_until * epochs - 1)
    return UpdateSchedule(first, every, last, int(admit_until * epochs), span)
