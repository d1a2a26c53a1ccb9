"""Checkpoints of earlier versions, read as if this one had written them."""

from collections.abc import Mapping, Sequence
from typing import Any

from bilevel.batches import Walk
from bilevel.events import stateful
from bilevel.generators import generator_states
from bilevel.training_state import FORMAT, field


def modernised(
    state: Mapping[str, Any],
    callbacks: Sequence[Any],
    walks: Mapping[str, Walk],
    taken_per_step: Mapping[str, int],
    method: Any,
) -> Mapping[str, Any]:
    """The state in today's format; one of today's, or of no known format, as it is.

    Args:
        state: what a checkpoint holds.
        callbacks: the trainer's.
        walks: its walks through batches.
        taken_per_step: how many batches an outer step takes from each walk.
        method: what its hypergradient method carries at first; None if nothing.

    Raises:
        ValueError: if it holds the state of a callback that is not at its place, or lacks what the format has.
    """
    if state.get("format") == 1:
        state = _from_format_1(state, callbacks, walks, taken_per_step)
    return _from_format_2(state, method) if state.get("format") == 2 else state


def _from_format_1(
    state: Mapping[str, Any], callbacks: Sequence[Any], walks: Mapping[str, Walk], taken_per_step: Mapping[str, int]
) -> dict[str, Any]:
    """It knew callbacks, called hooks, by position, and counted outer steps, each on a fresh pass of its loaders."""
    parts = {}
    for name, part in field(state, "parts", Mapping).items():
        kind, _, number = str(name).partition(".")
        if kind == "hook":
            place = callbacks[int(number)] if number.isdigit() and int(number) < len(callbacks) else None
            names = [n for n, callback in stateful(callbacks).items() if callback is place]
            if not names:
                raise ValueError(
                    f"The checkpoint holds the state of callback number {number}; give it at construction."
                )
            name = f"hook.{names[0]}"
        parts[name] = part
    taken = field(state, "outer_taken", int)
    begun = {}
    for name, walk in walks.items():
        length = len(walk.batches) if isinstance(walk.batches, Sequence) else 0
        begun[name] = {"position": taken * taken_per_step[name] % length if length else 0, "pass": None}
    generators = {name: generator_states(walk.batches) for name, walk in walks.items()}
    rest = {k: v for k, v in state.items() if k != "outer_taken"}
    return {**rest, "format": 2, "parts": parts, "walks": begun, "generators": generators}


def _from_format_2(state: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """It called callbacks hooks, kept nothing of `RecomputedUnrolled`, and an empty state of methods without one."""
    parts = {}
    for name, part in field(state, "parts", Mapping).items():
        kind, dot, rest = str(name).partition(".")
        parts[f"callback.{rest}" if kind + dot == "hook." else name] = part
    if method is not None:
        parts.setdefault("method", method)
    elif parts.get("method") == {}:
        del parts["method"]
    return {**state, "format": FORMAT, "parts": parts}
