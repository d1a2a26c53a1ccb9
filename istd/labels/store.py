"""The pseudo-masks of a run as one value: soft labels, where their points are, and which images take part."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from istd.data.layouts import Sample
from istd.data.points import Points
from istd.labels.initial import InitialRule, window_around

SILENT_BEYOND = 15  # px around a point where a pixel may be its target's: the half side of the start masks' window
ADMIT_AT = 0.8  # share of an image's points that the start must have got right (PAL, 2025)


class PseudoMasks:
    """Soft pseudo-masks in [0, 1] of a list of samples; the training target is `soft > 0.5`.

    Attributes:
        soft: one `(H, W)` float32 array per sample.
        start: the masks that training started from, `(H, W)` bool.
        points: one `(n, 2)` array per sample.
        admitted: `(N,)` bool, which samples take part in training so far.
        fixed: `(N,)` bool, which samples' masks no update may change.
    """

    def __init__(self, samples: Sequence[Sample], rule: InitialRule, admit_all: bool = False) -> None:
        drawn = [rule(s.image, s.points) for s in samples]
        self.start = [d.mask for d in drawn]
        self.soft = [d.mask.astype(np.float32) for d in drawn]
        self.points = [s.points for s in samples]
        share = np.array([d.reliable.mean() if len(d.reliable) else 1.0 for d in drawn])
        self.admitted = np.ones(len(drawn), dtype=bool) if admit_all else share >= ADMIT_AT
        self.fixed = np.zeros(len(drawn), dtype=bool)

    def fix(self, indices: NDArray[np.int64], masks: Sequence[NDArray[np.bool_]]) -> None:
        """Give some samples masks of another source, which stay as they are."""
        for i, mask in zip(indices.tolist(), masks, strict=True):
            self.start[i], self.soft[i], self.fixed[i] = mask, mask.astype(np.float32), True

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.soft)

    def hard(self, i: int) -> NDArray[np.bool_]:
        """`(H, W)` training target of sample i."""
        return np.asarray(self.soft[i] > 0.5)

    def values(self, i: int) -> NDArray[np.float32]:
        """`(H, W)` soft label of sample i, for methods whose loss takes it as it is."""
        return self.soft[i]

    def state_dict(self) -> dict[str, Any]:
        """Soft labels (their few non-zero pixels) and admissions as tensors."""
        places = [np.flatnonzero(m) for m in self.soft]
        return {
            "places": [torch.from_numpy(p) for p in places],
            "values": [torch.from_numpy(m.ravel()[p]) for m, p in zip(self.soft, places, strict=True)],
            "admitted": torch.from_numpy(self.admitted),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        for i, (places, values) in enumerate(zip(state["places"], state["values"], strict=True)):
            self.soft[i] = np.zeros_like(self.soft[i])
            self.soft[i].ravel()[places.cpu().numpy()] = values.cpu().numpy()
        self.admitted = state["admitted"].cpu().numpy()


def point_maps(shape: tuple[int, ...], points: Points) -> NDArray[np.float32]:
    """`(2, H, W)`: the 3x3 pixels around every point, and those together with all pixels far from any point."""
    at, counted = np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    for row, col in points.tolist():
        rows, cols, _, _ = window_around(shape, row, col, SILENT_BEYOND)
        counted[rows, cols] = 0.0
    for row, col in points.tolist():
        rows, cols, _, _ = window_around(shape, row, col, 1)
        at[rows, cols] = 1.0
    return np.stack([at, np.maximum(at, counted)])
