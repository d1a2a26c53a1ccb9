"""Spectral normalisation as a function of the weight alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


def power_iterations(*modules: nn.Module) -> list[Any]:
    """What iterates for singular vectors in some modules: parametrisations, and hooks of the older kind."""
    found: list[Any] = []
    for module in modules:
        for part in module.modules():
            if type(part).__name__ == "_SpectralNorm":
                found.append(part)
            found += [hook for hook in part._forward_pre_hooks.values() if type(hook).__name__ == "SpectralNorm"]
    return found


@contextmanager
def stored_vectors(iterating: Sequence[Any]) -> Iterator[None]:
    """Inside, `W / (u' W v)` takes u and v as they are stored, as in eval mode, and does not improve them.

    In training mode torch moves both towards the singular vectors of W at every use, under no_grad: the value then
    depends on W by way of u and v, the derivative leaves that out, and every unroll would be wrong by that much.
    """
    before = [part.n_power_iterations for part in iterating]
    for part in iterating:
        part.n_power_iterations = 0
    try:
        yield
    finally:
        for part, count in zip(iterating, before, strict=True):
            part.n_power_iterations = count
