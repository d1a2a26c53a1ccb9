"""BilevelTrainer: alternate inner steps on one objective and outer steps on another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from bilevel.batches import Walk
from bilevel.deprecation import renamed
from bilevel.divergence import FiniteGuard, TrainingDiverged
from bilevel.events import Callback, ProgressBar, ended, notify, stateful
from bilevel.hypergradients import HypergradientMethod
from bilevel.inner_epoch import InnerEpoch
from bilevel.modules import ModuleLoss
from bilevel.objectives import INNER_OBJECTIVES, OUTER_OBJECTIVES, resolve_objective
from bilevel.old_checkpoints import modernised
from bilevel.outer_phase import OuterPhase, method_for
from bilevel.problem import BilevelProblem
from bilevel.results import initial_state
from bilevel.resumable import Resumable
from bilevel.schedule import Schedule
from bilevel.trainer_checks import (
    check_inner_optimizer,
    check_modules,
    check_outer_optimizer,
    named_among,
)

__all__ = ["BilevelTrainer", "TrainingDiverged"]


@renamed
class BilevelTrainer(Resumable):
    """Train `inner` on the inner objective while the outer objective steers `outer` by hypergradients.

    Each epoch makes one ordinary optimizer step per inner batch, `w <- w - optimizer(df/dw)`, in which the outer
    variables are constants (they require no gradient there, so weights cost no graph). After the epochs that
    `schedule` names, each outer step estimates `dF(w*(a), a)/da` with `method` on fresh batches and steps `a` with the
    outer optimizer. Hypergradients are computed on copies; they change neither `inner` nor any buffer. Layers that
    are in eval mode when training starts, while `inner` as a whole does not, are frozen: they stay in eval mode.

    Args:
        inner: module whose trainable parameters are the inner variables w.
        outer: module whose trainable parameters are the outer variables a (sample weights, say). A module without
            parameters, such as `UniformWeights`, makes this an ordinary training loop.
        inner_loss: `f(inner, outer, batch) -> 0-d tensor`, or the name of a registered inner objective.
        outer_loss: `F(inner, outer, batch) -> 0-d tensor`, or the name of a registered outer objective.
        inner_batches: batches of an epoch: a list, a DataLoader or any iterable that can be iterated again. If it, or
            its sampler, has `set_epoch(epoch)`, that is called first. The hypergradients take theirs from a walk of
            their own that goes on from one outer phase to the next, so that every batch has its turn.
        outer_batches: batches of the outer loss, in the same forms, walked through likewise.
        inner_optimizer: a torch optimizer over the trainable parameters of `inner`.
        outer_optimizer: a torch optimizer over those of `outer` and over `shared`.
        method: a hypergradient method or its registry name. None differentiates exactly through the step that
            `inner_optimizer` would take next, with the rates and moments it has then (see `NextStep`).
        schedule: when outer steps are due.
        shared: parameters of `inner` that the outer step moves as well, along their direct gradient dF/dw at the point
            where the method evaluates F (after the look-ahead for `Unrolled`); `outer_optimizer` must hold them.
        inner_scheduler: a torch learning-rate scheduler, stepped after every inner step; a `ReduceLROnPlateau` after
            every epoch, on its mean inner loss.
        callbacks: called as training goes (see `Callback`). Those with a state are checkpointed under their `name`, or
            their class's.
        state: further objects with `state_dict` and `load_state_dict` to be checkpointed, by name.
        checkpoint: file for the checkpoint, written atomically after every epoch; None writes none. While it trains,
            no second trainer can work on the same file.
        config: plain data that identifies the run; resuming with another config is refused, naming the difference.
        describe_batch: gives a small object whose `str()` names a batch in the message of `TrainingDiverged`; it is
            kept for some steps and turned into text only on failure.
        autocast: `torch.bfloat16` evaluates the inner loss of every inner step under `torch.autocast`, on the device of
            `inner`; variables, optimizer states and all hypergradients keep the parameters' own precision.
        progress: show a progress bar.

    Attributes:
        epoch: number of finished epochs.
        history: one dict of numbers per finished epoch.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> from bilevel.reweighting import TableWeights
        >>> x, y, clean = torch.randn(32, 3), torch.zeros(32).long(), [(torch.randn(8, 3), torch.zeros(8).long())]
        >>> model, weights = torch.nn.Linear(3, 2), TableWeights.per_sample(32)
        >>> trainer = BilevelTrainer(
        ...     model, weights,
        ...     inner_loss=lambda m, w, b: (w(b[2]) * F.cross_entropy(m(b[0]), b[1], reduction="none")).mean(),
        ...     outer_loss=lambda m, w, b: F.cross_entropy(m(b[0]), b[1]),
        ...     inner_batches=[(x, y, torch.arange(32))], outer_batches=clean,
        ...     inner_optimizer=torch.optim.SGD(model.parameters(), 0.1),
        ...     outer_optimizer=torch.optim.Adam(weights.parameters(), 0.1), progress=False,
        ... )
        >>> len(trainer.fit(2))
        2
    """

    def __init__(
        self,
        inner: nn.Module,
        outer: nn.Module,
        *,
        inner_loss: ModuleLoss | str,
        outer_loss: ModuleLoss | str | None = None,
        inner_batches: Iterable[Any],
        outer_batches: Iterable[Any] | None = None,
        inner_optimizer: torch.optim.Optimizer,
        outer_optimizer: torch.optim.Optimizer | None = None,
        method: HypergradientMethod | str | None = None,
        schedule: Schedule | None = None,
        shared: Iterable[nn.Parameter] = (),
        inner_scheduler: LRScheduler | None = None,
        callbacks: Iterable[Callback | Any] = (),
        state: Mapping[str, Any] | None = None,
        checkpoint: Path | str | None = None,
        config: Mapping[str, Any] | None = None,
        describe_batch: Callable[[Any], object] | None = None,
        autocast: torch.dtype | None = None,
        progress: bool = True,
    ) -> None:
        check_modules(inner, outer)
        check_inner_optimizer(inner_optimizer, inner)
        super().__init__(Walk(inner_batches, "inner_batches"), checkpoint, config, state)
        self.inner, self.outer = inner, outer
        self.inner_loss = resolve_objective(inner_loss, INNER_OBJECTIVES)
        self.inner_batches, self.outer_batches = inner_batches, outer_batches
        self.inner_optimizer, self.outer_optimizer = inner_optimizer, outer_optimizer
        self.schedule, self.inner_scheduler = schedule or Schedule(), inner_scheduler
        self.callbacks: list[Any] = [*callbacks, *([ProgressBar()] if progress else [])]
        stateful(self.callbacks)  # refuses two of one name
        self.describe_batch = describe_batch or (lambda batch: "")
        self.autocast, self.total_epochs = autocast, 0
        self._outer_phase: OuterPhase | None = None
        optimizers = {"inner_optimizer": inner_optimizer}
        moved = named_among(inner, shared)
        if moved or any(p.requires_grad for p in outer.parameters()):
            if outer_loss is None or outer_batches is None or outer_optimizer is None:
                raise ValueError(
                    "`outer` has trainable parameters, so `outer_loss`, `outer_batches` and `outer_optimizer` are all "
                    "needed; use UniformWeights() as `outer` for plain training."
                )
            check_outer_optimizer(outer_optimizer, outer, moved)
            optimizers["outer_optimizer"] = outer_optimizer
            self._walks["outer"] = Walk(outer_batches, "outer_batches")
            self._outer_phase = OuterPhase(
                inner,
                outer,
                self.inner_loss,
                resolve_objective(outer_loss, OUTER_OBJECTIVES),
                method_for(method, inner_optimizer, inner),
                outer_optimizer,
                self.schedule,
                moved,
                self._walks,
                self.describe_batch,
            )
        self._guard = FiniteGuard({"inner": inner, "outer": outer}, optimizers)
        self._inner_epoch = InnerEpoch(
            inner,
            outer,
            self.inner_loss,
            inner_batches,
            inner_optimizer,
            inner_scheduler,
            self.describe_batch,
            autocast,
            self._guard,
        )

    @property
    def bilevel(self) -> bool:
        """Whether there is anything for outer steps to move."""
        return self._outer_phase is not None

    @property
    def method(self) -> HypergradientMethod | None:
        """The hypergradient method; None where there is nothing for outer steps to move."""
        return self._outer_phase.method if self._outer_phase is not None else None

    @property
    def method_state(self) -> Any:
        """What the method carries from step to step; see `hypergradient`."""
        return self._outer_phase.method_state if self._outer_phase is not None else None

    @property
    def problem(self) -> BilevelProblem:
        """The pair of pure losses that the outer steps differentiate."""
        return self._phase().problem

    def fit(self, epochs: int, *, restart_epoch: bool = False) -> list[dict[str, float]]:
        """Train until `epochs` epochs are finished in total and return the history.

        Args:
            epochs: in total.
            restart_epoch: after an exception in the middle of an epoch, train that epoch from its beginning with the
                variables as they are, unlike an uninterrupted run; `resume()` goes on like one.

        Raises:
            TrainingDiverged: if a loss, or a parameter or buffer after an epoch, is not finite; the last checkpoint is
                kept.
            FileInUseError: if another trainer is at work on the checkpoint, or has written it since this one did.
            RuntimeError: if an exception stopped this trainer in the middle of an epoch and it has not been resumed.
            KeyboardInterrupt: passed on; the checkpoint of the last finished epoch is on disk.
        """
        if not restart_epoch:
            self._refuse_the_middle_of_an_epoch()
        self.total_epochs = epochs
        with self._holding_the_file(), ended(self.callbacks, self):
            notify(self.callbacks, "on_fit_start", self)
            self._inner_epoch.note_frozen()
            if self.epoch == 0 and self._unfinished is None:
                self.save()
            while self.epoch < epochs:
                self._one_epoch()
        return self.history

    def _one_epoch(self) -> None:
        self._unfinished = epoch = self.epoch + 1

        def after_step(step: int) -> None:
            notify(self.callbacks, "on_inner_step", self, epoch, step)

        metrics = {"inner_loss": self._inner_epoch.run(epoch, self._kept(), after_step)}
        if self._outer_phase is not None and self.schedule.due(epoch):
            losses = [
                self.outer_step(inner_batches, outer_batch, epoch, step)
                for step, (inner_batches, outer_batch) in enumerate(self._outer_phase.batches(epoch))
            ]
            metrics["outer_loss"] = float(torch.stack(losses).mean())
        self._guard.check_variables(epoch, self._kept())
        notify(self.callbacks, "on_epoch_end", self, epoch, metrics)
        self.epoch = epoch
        self.history.append(metrics)
        self._unfinished = None
        self.save()

    def outer_step(self, inner_batches: Sequence[Any], outer_batch: Any, epoch: int = 0, step: int = 0) -> Tensor:
        """Make one outer step on the given batches and return the outer loss before it."""
        found = self._phase().step(inner_batches, outer_batch, epoch, step)
        notify(self.callbacks, "on_outer_step", self, epoch, step, found)
        return found.outer_loss

    def _phase(self) -> OuterPhase:
        if self._outer_phase is None:
            raise ValueError("`outer` has no trainable parameters and there are no `shared` ones: no outer step to do.")
        return self._outer_phase

    def _parts(self) -> dict[str, Any]:
        parts = {f"callback.{name}": callback for name, callback in stateful(self.callbacks).items()}
        parts |= {"inner": self.inner, "outer": self.outer, "inner_optimizer": self.inner_optimizer}
        if self.outer_optimizer is not None:
            parts["outer_optimizer"] = self.outer_optimizer
        if self.inner_scheduler is not None:
            parts["inner_scheduler"] = self.inner_scheduler
        if self.method_state is not None:
            parts["method"] = self._phase()
        return parts

    def _modernised(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        taken = {"inner": self.schedule.inner_batches_per_step, "outer": 1}
        return modernised(state, self.callbacks, self._walks, taken, initial_state(self.method))
