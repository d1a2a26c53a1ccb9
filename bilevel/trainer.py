"""BilevelTrainer: alternate inner steps on one objective and outer steps on another."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.batches import Walk, set_epoch
from bilevel.checkpoint import load_checkpoint, save_checkpoint
from bilevel.events import ProgressBar, call_hooks
from bilevel.generators import generator_states, random_state, restore_generators, restore_random_state
from bilevel.hypergradients import HypergradientMethod, not_finite, resolve_method
from bilevel.modules import ModuleLoss, parameters_of, problem_from_modules
from bilevel.objectives import INNER_OBJECTIVES, OUTER_OBJECTIVES, resolve_objective
from bilevel.schedule import Schedule

FORMAT = 2
CHECK_EVERY = 20  # inner steps between looks at the loss: each look waits for the device


class TrainingDiverged(RuntimeError):
    """A loss or a parameter became NaN or infinite; the message names it, and the last checkpoint is as it was."""


class BilevelTrainer:
    """Train `inner` on the inner objective while the outer objective steers `outer` by hypergradients.

    Each epoch makes one ordinary optimizer step per inner batch, `w <- w - optimizer(df/dw)`, in which the outer
    variables are constants (they require no gradient there, so weights cost no graph). After the epochs that
    `schedule` names, each outer step estimates `dF(w*(a), a)/da` with `method` on fresh batches and steps `a` with the
    outer optimizer. Hypergradients are computed on copies; they change neither `inner` nor any buffer.

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
        inner_optimizer: a torch optimizer over the parameters of `inner`.
        outer_optimizer: a torch optimizer over those of `outer` (and of `shared`, if it is to move them).
        method: a hypergradient method or its registry name.
        schedule: when outer steps are due.
        shared: parameters of `inner` that the outer step moves as well, along their direct gradient dF/dw at the point
            where the method evaluates F (after the look-ahead for `Unrolled`); they must stand in `outer_optimizer`.
        inner_scheduler: a torch learning-rate scheduler, stepped after every inner step.
        hooks: objects with some of the methods of `bilevel.events.Hook`.
        state: further objects with `state_dict` and `load_state_dict` to be checkpointed, by name.
        checkpoint: file for the checkpoint, written atomically after every epoch; None writes none.
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
        method: HypergradientMethod | str = "gauss_newton",
        schedule: Schedule | None = None,
        shared: Iterable[nn.Parameter] = (),
        inner_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        hooks: Iterable[Any] = (),
        state: Mapping[str, Any] | None = None,
        checkpoint: Path | str | None = None,
        config: Mapping[str, Any] | None = None,
        describe_batch: Callable[[Any], object] | None = None,
        autocast: torch.dtype | None = None,
        progress: bool = True,
    ) -> None:
        self.inner, self.outer = inner, outer
        self.inner_loss = resolve_objective(inner_loss, INNER_OBJECTIVES)
        self.inner_batches, self.outer_batches = inner_batches, outer_batches
        self.inner_optimizer, self.outer_optimizer = inner_optimizer, outer_optimizer
        self.method = resolve_method(method)
        self.schedule = schedule or Schedule()
        self.inner_scheduler = inner_scheduler
        self.hooks = [*hooks, *([ProgressBar()] if progress else [])]
        self.checkpoint = Path(checkpoint) if checkpoint is not None else None
        self.config = dict(config or {})
        self.describe_batch = describe_batch or (lambda batch: "")
        if autocast not in (None, torch.bfloat16):
            raise ValueError(
                f"`autocast` must be None or torch.bfloat16, got {autocast}; float16 needs loss scaling, which would "
                "hide an inner loss that is not finite."
            )
        self.autocast = autocast
        self.epoch = 0
        self.total_epochs = 0
        self.history: list[dict[str, float]] = []
        self._state = dict(state or {})
        self._walks = {"inner": Walk(inner_batches, "inner_batches")}
        if outer_batches is not None:
            self._walks["outer"] = Walk(outer_batches, "outer_batches")
        self._inner_parameters = [p for p in inner.parameters() if p.requires_grad]
        self._outer_parameters = [p for p in outer.parameters() if p.requires_grad]
        self._shared = [(n, p) for n, p in inner.named_parameters() if any(p is s for s in shared)]
        self.bilevel = bool(self._shared or self._outer_parameters)
        if self.bilevel:
            if outer_loss is None or outer_batches is None or outer_optimizer is None:
                raise ValueError(
                    "`outer` has trainable parameters, so `outer_loss`, `outer_batches` and `outer_optimizer` are all "
                    "needed; use UniformWeights() as `outer` for plain training."
                )
            self.problem = problem_from_modules(
                inner, outer, self.inner_loss, resolve_objective(outer_loss, OUTER_OBJECTIVES)
            )
        if not self._inner_parameters:
            raise ValueError("`inner` has no trainable parameters.")

    def track(self, name: str, part: Any) -> None:
        """Checkpoint one more object (with `state_dict` and `load_state_dict`) under `name`."""
        self._state[name] = part

    def fit(self, epochs: int) -> list[dict[str, float]]:
        """Train until `epochs` epochs are finished in total and return the history.

        Raises:
            TrainingDiverged: if a loss, or a parameter after an epoch, is not finite; the last checkpoint is kept.
            KeyboardInterrupt: passed on; the checkpoint of the last finished epoch is on disk.
        """
        self.total_epochs = epochs
        try:
            call_hooks(self.hooks, "on_fit_start", self)
            if self.epoch == 0:
                self.save()
            while self.epoch < epochs:
                metrics = self._inner_epoch(self.epoch + 1)
                if self.bilevel and self.schedule.due(self.epoch + 1):
                    metrics |= self._outer_phase(self.epoch + 1)
                self._check_parameters(self.epoch + 1)
                self.epoch += 1
                call_hooks(self.hooks, "on_epoch_end", self, self.epoch, metrics)
                self.history.append(metrics)
                self.save()
        finally:
            call_hooks(self.hooks, "on_fit_end", self)
        return self.history

    def _inner_epoch(self, epoch: int) -> dict[str, float]:
        set_epoch(self.inner_batches, epoch)
        self.inner.train()
        device = self._inner_parameters[0].device.type
        losses: list[Tensor] = []
        unchecked: list[object] = []
        for step, batch in enumerate(self.inner_batches):
            with constants(self._outer_parameters), torch.autocast(device, self.autocast, enabled=bool(self.autocast)):
                loss = self.inner_loss(self.inner, self.outer, batch)
            self.inner_optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=self._inner_parameters)  # type: ignore[no-untyped-call]
            self.inner_optimizer.step()
            if self.inner_scheduler is not None:
                self.inner_scheduler.step()
            losses.append(loss.detach())
            unchecked.append(self.describe_batch(batch))
            if len(unchecked) == CHECK_EVERY:
                self._check_finite(losses[-CHECK_EVERY:], unchecked, epoch, step)
                unchecked = []
            call_hooks(self.hooks, "on_inner_step", self, epoch, step)
        if not losses:
            raise ValueError("`inner_batches` gave no batch; it must be iterable once per epoch (a list or a loader).")
        if unchecked:
            self._check_finite(losses[-len(unchecked) :], unchecked, epoch, len(losses) - 1)
        return {"inner_loss": float(torch.stack(losses).mean())}

    def _check_finite(self, losses: Sequence[Tensor], names: Sequence[object], epoch: int, last: int) -> None:
        finite = torch.stack(list(losses)).isfinite().tolist()
        if all(finite):
            return
        first = finite.index(False)
        value = float(losses[first])
        name = f" ({names[first]})" if str(names[first]) else ""
        raise TrainingDiverged(
            f"The inner loss is {value} in epoch {epoch}, batch {last - len(losses) + 1 + first}{name}{self._kept()}. "
            "Check that batch for values that are not finite, or lower the learning rate."
        )

    def _check_parameters(self, epoch: int) -> None:
        """A finite loss can have a gradient that is not; what it leaves must not be saved."""
        named = [*self.inner.named_parameters(prefix="inner"), *self.outer.named_parameters(prefix="outer")]
        finite = torch.stack([p.detach().isfinite().all() for _, p in named]).tolist()
        if not all(finite):
            raise TrainingDiverged(
                f"The parameter {named[finite.index(False)][0]} is not finite after epoch {epoch}, though all losses "
                f"were{self._kept()}. Look for a gradient that is not (the root or norm of zero), or lower the "
                "learning rate."
            )

    def _kept(self) -> str:
        return f"; the checkpoint of epoch {self.epoch} is kept in {self.checkpoint}" if self.checkpoint else ""

    def _outer_phase(self, epoch: int) -> dict[str, float]:
        k, n = self.schedule.steps, self.schedule.inner_batches
        inner_batches = self._walks["inner"].take(k * n, epoch)
        outer_batches = self._walks["outer"].take(k, epoch)
        losses = []
        for step, outer_batch in enumerate(outer_batches):
            losses.append(self.outer_step(inner_batches[step * n : (step + 1) * n], outer_batch, epoch, step))
        return {"outer_loss": float(torch.stack(losses).mean())}

    def outer_step(self, inner_batches: Sequence[Any], outer_batch: Any, epoch: int = 0, step: int = 0) -> Tensor:
        """Make one outer step on the given batches and return the outer loss before it."""
        assert self.outer_optimizer is not None
        w, a = parameters_of(self.inner), parameters_of(self.outer)
        if not a:  # shared variables only: a direct step, with a constant in place of the outer tree
            a = {"": torch.zeros((), device=self._inner_parameters[0].device)}
        found = self.method(self.problem, w, a, inner_batches, outer_batch)
        broken = not_finite(found)
        if broken:
            raise TrainingDiverged(
                f"The hypergradient is not finite in {broken} in epoch {epoch}, outer step {step}, batch "
                f"{self.describe_batch(outer_batch)}; no variable was changed by it. Lower the learning rates, or "
                "check that batch."
            )
        self.outer_optimizer.zero_grad(set_to_none=True)
        for name, p in self.outer.named_parameters():
            if p.requires_grad:
                p.grad = found.value[name]
        for name, p in self._shared:
            p.grad = found.inner_gradient[name]
        if found.inner is not None:
            self._adopt(found.inner)
        self.outer_optimizer.step()
        call_hooks(self.hooks, "on_outer_step", self, epoch, step, found)
        return found.outer_loss

    @torch.no_grad()
    def _adopt(self, moved: Mapping[str, Tensor]) -> None:
        """Take over inner variables that a penalty method has moved; its value belongs to them."""
        for name, p in self.inner.named_parameters():
            if name in moved:
                p.copy_(moved[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as plain data."""
        parts = {f"state.{name}": part for name, part in self._state.items()}
        parts |= {f"hook.{i}": h for i, h in enumerate(self.hooks) if hasattr(h, "state_dict")}
        parts |= {"inner": self.inner, "outer": self.outer, "inner_optimizer": self.inner_optimizer}
        if self.outer_optimizer is not None:
            parts["outer_optimizer"] = self.outer_optimizer
        if self.inner_scheduler is not None:
            parts["inner_scheduler"] = self.inner_scheduler
        if hasattr(self.method, "state_dict"):
            parts["method"] = self.method
        return {
            "format": FORMAT,
            "config": self.config,
            "epoch": self.epoch,
            "history": self.history,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "walks": {name: walk.state_dict() for name, walk in self._walks.items()},
            "generators": {name: generator_states(walk.batches) for name, walk in self._walks.items()},
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`.

        Raises:
            ValueError: if it belongs to another format or config; the message names the first difference.
        """
        if state.get("format") == 1:
            state = self._from_format_1(state)
        if state.get("format") != FORMAT:
            raise ValueError(f"This checkpoint has format {state.get('format')!r}; this version reads {FORMAT}.")
        for key in sorted(self.config.keys() | state["config"].keys()):
            old, new = state["config"].get(key), self.config.get(key)
            if old != new:
                raise ValueError(
                    f"The checkpoint was made with {key}={old!r}, this run has {key}={new!r}; resume with the old "
                    "value, or start afresh."
                )
        parts = state["parts"]
        for name, part in parts.items():
            kind, _, rest = name.partition(".")
            if kind == "state":
                self._state[rest].load_state_dict(part)
            elif kind == "hook":
                self.hooks[int(rest)].load_state_dict(part)
            else:
                getattr(self, name).load_state_dict(part)
        self.epoch = state["epoch"]
        self.history = list(state["history"])
        for name, walk in self._walks.items():
            walk.load_state_dict(state["walks"][name])
            restore_generators(walk.batches, state["generators"][name])
        restore_random_state(state["random"])

    def _from_format_1(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Such a checkpoint counts outer steps; its loaders started a fresh pass at every outer phase."""
        walks, taken = {}, {"inner": self.schedule.inner_batches, "outer": 1}
        for name, walk in self._walks.items():
            length = len(walk.batches) if isinstance(walk.batches, Sequence) else 0
            position = state["outer_taken"] * taken[name] % length if length else 0
            walks[name] = {"position": position, "pass": None}
        generators = {name: generator_states(walk.batches) for name, walk in self._walks.items()}
        return {**state, "format": FORMAT, "walks": walks, "generators": generators}

    def save(self) -> None:
        """Write the checkpoint, if there is a file for it."""
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.state_dict())

    def resume(self) -> bool:
        """Load the checkpoint if there is one; return whether there was."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return False
        self.load_state_dict(load_checkpoint(self.checkpoint))
        return True


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
