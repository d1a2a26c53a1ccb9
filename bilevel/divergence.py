"""The end of a run that has left the finite numbers, before they reach a checkpoint."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """A loss, a parameter, a buffer or a moment became NaN or infinite; the last checkpoint is as it was."""


class FiniteGuard:
    """Look at losses, and at what steps leave behind.

    Buffers that are not finite at the start (masks of minus infinity, say) are meant to be so and are left out.

    Args:
        modules: by name, the modules whose parameters and buffers are looked at.
        optimizers: by name, the optimizers whose states are; those count from the parameters' names.
    """

    def __init__(self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.modules, self.optimizers = modules, optimizers
        buffers = list(self._buffers())
        finite = _finite([b for _, b in buffers])
        self._meant = {name for (name, _), good in zip(buffers, finite, strict=True) if not good}

    def check_losses(self, losses: Sequence[Tensor], names: Sequence[object], epoch: int, last: int, kept: str) -> None:
        """Raise for the first of some losses that is not finite.

        Args:
            losses: 0-d tensors.
            names: what their batches are called.
            epoch: the epoch.
            last: number of the last of the batches in its epoch.
            kept: says where the last checkpoint is.
        """
        finite = _finite(losses)
        if all(finite):
            return
        first = finite.index(False)
        name = f" ({names[first]})" if str(names[first]) else ""
        raise TrainingDiverged(
            f"The inner loss is {float(losses[first])} in epoch {epoch}, batch {last - len(losses) + 1 + first}{name}"
            f"{kept}. Check that batch for values that are not finite, or lower the learning rate."
        )

    def check_variables(self, epoch: int, kept: str) -> None:
        """Raise for a parameter, a buffer or an optimizer's state that is not finite.

        A finite loss can have a gradient that is not, and a finite input a variance that is not: what they leave must
        not be saved.
        """
        named = [
            *((f"parameter {n}", p) for n, p in self._parameters()),
            *((f"buffer {n}", b) for n, b in self._buffers() if n not in self._meant),
            *self._states(),
        ]
        finite = _finite([x for _, x in named])
        if not all(finite):
            raise TrainingDiverged(
                f"The {named[finite.index(False)][0]} is not finite after epoch {epoch}, though all losses were{kept}. "
                "Look for a gradient that is not (the root or norm of zero) or for huge values in the data, or lower "
                "the learning rate."
            )

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.modules.items():
            yield from module.named_parameters(prefix=prefix)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.modules.items():
            yield from ((n, b) for n, b in module.named_buffers(prefix=prefix) if b.is_floating_point())

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        names = {p: name for name, p in self._parameters()}
        for prefix, optimizer in self.optimizers.items():
            for p, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        yield f"{key} of {names.get(p, 'a parameter')} in {prefix}", value


def _finite(tensors: Iterable[Tensor]) -> list[bool]:
    """Whether each is finite, with one wait for each device they lie on."""
    tests = [t.detach().isfinite().all() for t in tensors]
    if not tests:
        return []
    found: list[bool] = torch.stack([t.to(tests[0].device) for t in tests]).tolist()
    return found
