"""The methods that claim to be exact: one list, for every test that holds them to it."""

from bilevel import (
    AggregatedUnrolled,
    CheckpointedUnrolled,
    ForwardUnrolled,
    PessimisticUnrolled,
    RecomputedUnrolled,
    TruncatedUnrolled,
    Unrolled,
)

EXACT = {
    "checkpointed": lambda o, t, **k: CheckpointedUnrolled(o, t, **k),
    "recomputed": lambda o, t, **k: RecomputedUnrolled(o, t, **k),
    "recomputed-reverse": lambda o, t, **k: RecomputedUnrolled(o, t, "reverse", **k),
    "recomputed-forward": lambda o, t, **k: RecomputedUnrolled(o, t, "forward", **k),
    "forward": lambda o, t, **k: ForwardUnrolled(o, t, **k),
}
"""`name: (optimizer, steps, **options) -> method`: the same value as `Unrolled` with any start, state or optimizer."""

EXACT_FROM_A_POINT = EXACT | {
    "truncated, all kept": lambda o, t: TruncatedUnrolled(o, t, last=t),
    "aggregated, ratio 0": lambda o, t: AggregatedUnrolled(o, t, ratio=0.0),
}
"""The same, and settings of other methods at which they become `Unrolled`; these take no start."""

ANOTHER_LENGTH = {"pessimistic": lambda o, t: PessimisticUnrolled(o, t)}
"""Equal to `Unrolled` with as many steps as `stats["steps"]` says."""

FULL = Unrolled
