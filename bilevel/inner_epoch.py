"""One epoch of ordinary steps on the inner objective."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bilevel.batches import set_epoch
from bilevel.divergence import FiniteGuard
from bilevel.modules import ModuleLoss
from bilevel.trainer_checks import frozen_in_eval, train_mode

CHECK_EVERY = 20  # inner steps between looks at the loss: each look waits for the device


class InnerEpoch:
    """Step through all inner batches once; see `BilevelTrainer` for the arguments."""

    def __init__(
        self,
        inner: nn.Module,
        outer: nn.Module,
        loss: ModuleLoss,
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        describe_batch: Callable[[Any], object],
        autocast: torch.dtype | None,
        guard: FiniteGuard,
    ) -> None:
        self.inner, self.outer, self.loss, self.batches = inner, outer, loss, batches
        self.optimizer, self.scheduler, self.describe_batch, self.guard = optimizer, scheduler, describe_batch, guard
        if autocast not in (None, torch.bfloat16):
            raise ValueError(
                f"`autocast` must be None or torch.bfloat16, got {autocast}; float16 needs loss scaling, which would "
                "hide an inner loss that is not finite."
            )
        self.autocast = autocast
        self._parameters = [p for p in inner.parameters() if p.requires_grad]
        self._constants = [p for p in outer.parameters() if p.requires_grad]
        self._frozen = frozen_in_eval(inner)

    def note_frozen(self) -> None:
        """Take the layers that are in eval mode now as those to leave there, unless the whole module is."""
        if self.inner.training:
            self._frozen = frozen_in_eval(self.inner)

    def run(self, epoch: int, kept: str, after_step: Callable[[int], None]) -> float:
        """Make all steps and return the mean loss.

        Args:
            epoch: its number.
            kept: where the last checkpoint is, for an error.
            after_step: called with the number of each step.

        Raises:
            TrainingDiverged: if a loss is not finite.
            ValueError: if there is no batch.
        """
        set_epoch(self.batches, epoch)
        train_mode(self.inner, self._frozen)
        losses: list[Tensor] = []
        unchecked: list[object] = []
        for step, batch in enumerate(self.batches):
            losses.append(self._step(batch))
            unchecked.append(self.describe_batch(batch))
            if len(unchecked) == CHECK_EVERY:
                self.guard.check_losses(losses[-CHECK_EVERY:], unchecked, epoch, step, kept)
                unchecked = []
            after_step(step)
        if not losses:
            raise ValueError("`inner_batches` gave no batch; it must be iterable once per epoch (a list or a loader).")
        if unchecked:
            self.guard.check_losses(losses[-len(unchecked) :], unchecked, epoch, len(losses) - 1, kept)
        mean = float(torch.stack(losses).mean())
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(mean)
        return mean

    def _step(self, batch: Any) -> Tensor:
        device = self._parameters[0].device.type
        with constants(self._constants), torch.autocast(device, self.autocast, enabled=bool(self.autocast)):
            loss = self.loss(self.inner, self.outer, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self._parameters)  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        return loss.detach()


@contextmanager
def constants(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within this context the parameters require no gradient."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
