"""The outer steps between two epochs: batches in, hypergradient, a step of the outer optimizer."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.batches import Walk
from bilevel.divergence import TrainingDiverged
from bilevel.hypergradients import (
    HypergradientMethod,
    HypergradientWarning,
    NextStep,
    NotFiniteError,
    hypergradient,
    resolve_method,
)
from bilevel.modules import ModuleLoss, parameters_of, problem_from_modules
from bilevel.results import Hypergradient, initial_state
from bilevel.schedule import Schedule


def method_for(
    method: HypergradientMethod | str | None, optimizer: torch.optim.Optimizer, inner: nn.Module
) -> HypergradientMethod:
    """The method a trainer uses: the given one, or the exact derivative through the next step of `optimizer`.

    Raises:
        ValueError: for None, if the optimizer has no differentiable twin.
    """
    next_step = NextStep(optimizer, dict(inner.named_parameters()))
    method = resolve_method(method, next_step)
    if method is next_step:
        next_step.twin(parameters_of(inner))  # fails now rather than after the first epoch
    caution = getattr(method, "caution", "")
    if caution:
        warnings.warn(caution, HypergradientWarning, stacklevel=3)
    return method


class OuterPhase:
    """Make outer steps on a trainer's modules.

    Args:
        inner: see `BilevelTrainer`, as for all others.
        outer: its trainable parameters, if any, are the outer variables.
        inner_loss: the inner objective.
        outer_loss: the outer objective.
        method: a hypergradient method.
        optimizer: the outer optimizer.
        schedule: how many steps a phase has, and how many inner batches each is given.
        shared: named parameters of `inner` that follow their direct gradient.
        walks: the walks through `inner` and `outer` batches.
        describe_batch: names a batch in an error.
    """

    def __init__(
        self,
        inner: nn.Module,
        outer: nn.Module,
        inner_loss: ModuleLoss,
        outer_loss: ModuleLoss,
        method: HypergradientMethod,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        shared: Sequence[tuple[str, nn.Parameter]],
        walks: Mapping[str, Walk],
        describe_batch: Callable[[Any], object],
    ) -> None:
        self.inner, self.outer, self.method, self.optimizer = inner, outer, method, optimizer
        self.problem = problem_from_modules(inner, outer, inner_loss, outer_loss)
        self.method_state = initial_state(method)
        self.schedule, self.shared, self.walks, self.describe_batch = schedule, shared, walks, describe_batch

    def batches(self, epoch: int) -> Iterable[tuple[list[Any], Any]]:
        """For every step of a phase, its inner batches and its outer batch."""
        k, n = self.schedule.steps, self.schedule.inner_batches_per_step
        inner = self.walks["inner"].take(k * n, epoch)
        for step, outer in enumerate(self.walks["outer"].take(k, epoch)):
            yield inner[step * n : (step + 1) * n], outer

    def step(self, inner_batches: Sequence[Any], outer_batch: Any, epoch: int, step: int) -> Hypergradient:
        """One outer step.

        Raises:
            TrainingDiverged: if the hypergradient is not finite; no variable is changed then.
        """
        w, a = parameters_of(self.inner), parameters_of(self.outer)
        if not a:  # shared variables only: a direct step, with a constant in place of the outer tree
            a = {"": torch.zeros((), device=next(iter(w.values())).device)}
        try:
            found = hypergradient(
                self.problem, w, a, inner_batches, outer_batch, self.method, state=self.method_state, throw=True
            )
        except NotFiniteError as error:
            raise TrainingDiverged(
                f"{error} in epoch {epoch}, outer step {step}, batch {self.describe_batch(outer_batch)}; no variable "
                "was changed by it. Lower the learning rates, or check that batch."
            ) from None
        self.method_state = found.state
        inner_gradients = [p.grad for _, p in self.shared]  # they tell `from_torch` which parameters a step moves
        self.optimizer.zero_grad(set_to_none=True)
        for name, p in self.outer.named_parameters():
            if p.requires_grad:
                p.grad = found.value[name]
        for name, p in self.shared:
            p.grad = found.inner_gradient[name]
        if found.inner is not None:
            self._adopt(found.inner)
        self.optimizer.step()
        for (_, p), g in zip(self.shared, inner_gradients, strict=True):
            p.grad = g
        return found

    def state_dict(self) -> dict[str, Any]:
        """What the method carries from step to step."""
        state: dict[str, Any] = self.method_state
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.method_state = state

    @torch.no_grad()
    def _adopt(self, moved: Mapping[str, Tensor]) -> None:
        """Take over inner variables that a penalty method has moved; its value belongs to them."""
        for name, p in self.inner.named_parameters():
            if name in moved:
                p.copy_(moved[name])
