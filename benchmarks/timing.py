"""What a benchmark case is, and how it is timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bilevel import Hypergradient

Call = Callable[[], Any]


@dataclass
class Case:
    """One problem: what is timed, against which truth, and beside which floor.

    Attributes:
        plain: T plain optimizer steps, the unit of time.
        calls: by `(library, method)`, a function that returns the hypergradient (or None where there is no truth).
        truth: computes the exact hypergradient; a function, so that it leaves no trace in a measurement of memory.
        floors: by method, seconds that cannot be avoided, measured when asked.
        exact: the methods whose error is measured against it.
        starts: makes the same problem from other starts, over which errors are measured as well.
    """

    plain: Call
    calls: dict[tuple[str, str], Call]
    truth: Callable[[], Tensor] | None = None
    floors: dict[str, Callable[[], float]] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    starts: "list[Callable[[], Case]]" = field(default_factory=list)


def seconds(call: Call, repeats: int = 5) -> float:
    """Fastest of a few runs."""
    call()
    return min(timed(call) for _ in range(repeats))


def timed(call: Call) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def carried(call: Callable[[Any], Hypergradient]) -> Call:
    """A function of a method's state as a call that goes on from the state of the call before; returns the value."""
    state: Any = None

    def run() -> Any:
        nonlocal state
        found = call(state)
        state = found.state
        return found.value

    return run
