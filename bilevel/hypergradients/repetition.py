"""Evaluating a loss twice with the same random numbers, and noticing where that was not enough."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.hypergradients.base import HypergradientWarning
from bilevel.tree import Tree, leaves


class RandomState(NamedTuple):
    """States of the global random number generators, so that a step can be repeated with the same dropout masks.

    Python's, NumPy's and torch's; a generator of a loss's own is out of reach (`warn_if_not_repeated` finds its work).
    """

    cpu: Tensor
    device: torch.device
    cuda: Tensor | None
    others: tuple[Any, Any]

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The state now; `device` is that of the inner variables."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, cuda, _python_and_numpy())

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, draw from this state; afterwards the generators have the states they had before."""
        now = _python_and_numpy()
        with torch.random.fork_rng(devices=[self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            _set_python_and_numpy(self.others)
            try:
                yield
            finally:
                _set_python_and_numpy(now)


def _python_and_numpy() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 (a loss may draw from the global one)


def _set_python_and_numpy(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 (see above)


def warn_if_not_repeated(first: list[Tensor], again: list[Tensor]) -> None:
    """Warn where what was evaluated twice at the same variables is not the same, beyond the rounding of kernels.

    Args:
        first: values of the first time.
        again: values of the second time, in the same order.
    """
    if not first:
        return
    a, b = (torch.cat([x.detach().reshape(-1) for x in values]) for values in (first, again))
    # Other kernels round otherwise (4 sqrt(eps), as for products); another dropout mask is far beyond.
    gap, bound = (a - b).norm(), 4 * torch.finfo(a.dtype).eps ** 0.5 * torch.maximum(a.norm(), b.norm())
    if bool(gap > bound):
        warnings.warn(
            f"`inner_loss` is not the same function twice: evaluated again with all global generators replayed it is "
            f"off by {float(gap / a.norm()):.1e}, and so the recomputed hypergradient is wrong. Does it draw from a "
            "generator of its own, or count its calls? Draw such numbers into the batch, or use Unrolled.",
            HypergradientWarning,
            stacklevel=3,
        )


def device_of(tree: Tree) -> torch.device:
    """Device of the first leaf."""
    return leaves(tree)[0].device
