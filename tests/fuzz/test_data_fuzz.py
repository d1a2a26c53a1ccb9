"""Hostile data: every input is read right, or refused by a ValueError or FileNotFoundError that names it.

`FUZZ_CASES=10000 python -m pytest tests/fuzz` runs more, `FUZZ_SEED` starts elsewhere. A failure names its seed.
"""

import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from tests.fuzz.data_cases import CASES, clean

COUNT = int(os.environ.get("FUZZ_CASES", "160"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
PATIENCE = 20  # seconds for one case, which takes some milliseconds


class Hang(BaseException):
    """A case that does not end; no handler of the library catches it."""


@contextmanager
def patience():
    def stop(signum, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(case, seed, root):
    """`read`, `refused`, or a sentence on what went wrong."""
    try:
        with patience():
            case(root, np.random.default_rng(seed))()
    except (ValueError, FileNotFoundError) as error:
        named = str(root) in str(error) or "'im" in str(error)
        return "refused" if named and not isinstance(error, UnicodeError) else f"names nothing: {error!r}"
    except Hang:
        return "hangs"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    return "read"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_hostile_data_is_read_right_or_refused_by_name(case, tmp_path):
    found = {}
    for seed in range(SEED, SEED + -(-COUNT // len(CASES))):
        root = tmp_path / "set"
        root.mkdir()
        found[seed] = outcome(case, seed, root)
        clean(root)
    wrong = {seed: what for seed, what in found.items() if what not in ("read", "refused")}
    assert not wrong, f"{len(wrong)} of {len(found)}: {dict(list(wrong.items())[:8])}"
    if len(found) >= 20:
        assert set(found.values()) == {"read", "refused"}  # both happen, so the cases are neither tame nor mere noise
