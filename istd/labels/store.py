"""The pseudo-masks of a run: a value that updates give anew, and the place that holds the present one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from istd.data.dataset import Sample
from istd.data.points import Points
from istd.labels.initial import InitialRule, Mask, window_around

SoftMask = NDArray[np.float32]

SILENT_BEYOND = 15  # px around a point where a pixel may be its target's: the half side of the start masks' window
ADMIT_AT = 0.8  # share of an image's points that the start must have got right (PAL, 2025)


@dataclass(frozen=True, eq=False)
class PseudoMasks:
    """Soft pseudo-masks in [0, 1] of a list of samples; the training target is `soft > 0.5`.

    Attributes:
        soft: one `(H, W)` float32 array per sample.
        start: the masks that training started from, `(H, W)` bool.
        points: one `(n, 2)` array per sample.
        admitted: `(N,)` bool, which samples take part in training so far.
        fixed: `(N,)` bool, which samples' masks no update may change.
    """

    soft: tuple[SoftMask, ...]
    start: tuple[Mask, ...]
    points: tuple[Points, ...]
    admitted: NDArray[np.bool_]
    fixed: NDArray[np.bool_]

    @classmethod
    def draw(cls, samples: Sequence[Sample], rule: InitialRule, admit_all: bool = False) -> "PseudoMasks":
        """The masks that a rule draws; samples of which it trusts too few points wait, unless all are admitted."""
        drawn = [rule(s) for s in samples]
        share = np.array([d.reliable.mean() if len(d.reliable) else 1.0 for d in drawn])
        return cls(
            soft=tuple(d.mask.astype(np.float32) for d in drawn),
            start=tuple(d.mask for d in drawn),
            points=tuple(s.points for s in samples),
            admitted=np.ones(len(drawn), dtype=bool) if admit_all else share >= ADMIT_AT,
            fixed=np.zeros(len(drawn), dtype=bool),
        )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.soft)

    def hard(self, i: int) -> Mask:
        """`(H, W)` training target of sample i."""
        return np.asarray(self.soft[i] > 0.5)

    def updated(self, i: int, soft: SoftMask) -> "PseudoMasks":
        """The same masks with another one for sample i, which takes part from now on."""
        return self.replaced({i: soft}).admitting(np.array([i]))

    def replaced(self, soft: Mapping[int, SoftMask]) -> "PseudoMasks":
        """The same masks with others for some samples."""
        return replace(self, soft=tuple(soft.get(i, old) for i, old in enumerate(self.soft)))

    def admitting(self, indices: NDArray[np.int64]) -> "PseudoMasks":
        """The same masks, with some more samples that take part."""
        admitted = self.admitted.copy()
        admitted[indices] = True
        return replace(self, admitted=admitted)

    def fixing(self, indices: NDArray[np.int64], masks: Sequence[Mask]) -> "PseudoMasks":
        """The same masks, with masks of another source for some samples, which stay as they are."""
        given, fixed = dict(zip(indices.tolist(), masks, strict=True)), self.fixed.copy()
        fixed[indices] = True
        start = tuple(given.get(i, old) for i, old in enumerate(self.start))
        return replace(self.replaced({i: m.astype(np.float32) for i, m in given.items()}), start=start, fixed=fixed)


class Labels:
    """The labels of a run at this moment; loaders read them, callbacks put new ones in their place.

    Attributes:
        now: the pseudo-masks.
    """

    def __init__(self, masks: PseudoMasks) -> None:
        self.now = masks

    def hard(self, i: int) -> Mask:
        """`(H, W)` training target of sample i."""
        return self.now.hard(i)

    def values(self, i: int) -> SoftMask:
        """`(H, W)` soft label of sample i, for methods whose loss takes it as it is."""
        return self.now.soft[i]

    def state_dict(self) -> dict[str, Any]:
        """Soft labels (their few non-zero pixels) and admissions as tensors."""
        places = [np.flatnonzero(m) for m in self.now.soft]
        return {
            "places": [torch.from_numpy(p) for p in places],
            "values": [torch.from_numpy(m.ravel()[p]) for m, p in zip(self.now.soft, places, strict=True)],
            "admitted": torch.from_numpy(self.now.admitted.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        soft = {}
        for i, (places, values) in enumerate(zip(state["places"], state["values"], strict=True)):
            soft[i] = np.zeros_like(self.now.soft[i])
            soft[i].ravel()[places.cpu().numpy()] = values.cpu().numpy()
        self.now = replace(self.now.replaced(soft), admitted=state["admitted"].cpu().numpy())


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
