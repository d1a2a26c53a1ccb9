"""Random generators as plain data: the global ones, and those that a loader and its parts hold."""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bilevel.checkpoint import ResumeWarning

# A loader's generators lie in it or in these parts of it.
PARTS = ("sampler", "batch_sampler", "dataset", "collate_fn")
KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def random_state() -> dict[str, Any]:
    """The state of every global random generator (python, numpy, torch CPU and CUDA), as plain data."""
    return {
        "python": _get(random._inst),  # the generator behind the module's functions
        "numpy": _get(np.random.mtrand._rand),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every global random generator to a state from `random_state`."""
    _set(random._inst, state["python"])
    _set(np.random.mtrand._rand, state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def own_generators(loader: object) -> dict[str, Any]:
    """The generators that a loader, its samplers and its data sets hold as attributes, by dotted name.

    Looks at `torch.Generator`, `numpy.random.Generator`, `numpy.random.RandomState` and `random.Random`. One that is
    held twice, as a DataLoader's generator is by its sampler, is named once.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(part: object, path: str) -> None:
        if id(part) in seen or isinstance(part, type):
            return
        seen.add(id(part))
        attributes = getattr(part, "__dict__", {})
        for name, value in attributes.items():
            if isinstance(value, KINDS) and id(value) not in seen:
                seen.add(id(value))
                found[f"{path}{name}"] = value
        for name in PARTS:
            if name in attributes:
                look(attributes[name], f"{path}{name}.")

    look(loader, "")
    return found


def generator_states(loader: object) -> dict[str, Any]:
    """The states of `own_generators`, as plain data."""
    return {name: _get(generator) for name, generator in own_generators(loader).items()}


def restore_generators(loader: object, states: Mapping[str, Any]) -> None:
    """Set a loader's own generators to states of `generator_states`, with a warning where it holds other ones."""
    there = own_generators(loader)
    if there.keys() != states.keys():
        warnings.warn(
            f"A {type(loader).__name__} holds the generators {sorted(there) or 'none'}, the checkpoint those of "
            f"{sorted(states) or 'none'}: the batches of the resumed run are others.",
            ResumeWarning,
            stacklevel=4,
        )
    for name, generator in there.items():
        if name in states:
            _set(generator, states[name])


@contextmanager
def untouched(loader: object) -> Iterator[None]:
    """Afterwards the global generators and the loader's own have the states they had before."""
    before, own = random_state(), generator_states(loader)
    try:
        yield
    finally:
        restore_random_state(before)
        restore_generators(loader, own)


def _get(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        kind, keys, position, has_gauss, cached = generator.get_state(legacy=True)
        return [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached]
    version, numbers, gauss = generator.getstate()
    return [version, list(numbers), gauss]


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _arrays(state)
    elif isinstance(generator, np.random.RandomState):
        kind, keys, position, has_gauss, cached = state
        generator.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    else:
        version, numbers, gauss = state
        generator.setstate((version, tuple(numbers), gauss))


def _plain(state: Any) -> Any:
    """A bit generator's state with tensors in place of arrays (uint64 counters as two's complement)."""
    if isinstance(state, dict):
        return {k: _plain(v) for k, v in state.items()}
    if isinstance(state, np.ndarray):
        return {"array": torch.from_numpy(state.astype(np.int64)), "dtype": str(state.dtype)}
    return state.item() if isinstance(state, np.generic) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        if state.keys() == {"array", "dtype"}:
            return state["array"].numpy().astype(state["dtype"])
        return {k: _arrays(v) for k, v in state.items()}
    return state
