"""Pixel metrics over a data set: IoU and nIoU, in the field's standard definition."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class PixelScores:
    """Accumulates IoU and nIoU over images.

    With I_k and U_k the numbers of pixels in intersection and union of prediction and truth of image k:
    `IoU = sum_k I_k / sum_k U_k` and `nIoU = mean_k I_k / U_k`. An image whose union is empty counts as 0 in nIoU, as
    in every released implementation (Dai et al., 2021; Ying et al., 2023). Larger is better, both lie in [0, 1].
    """

    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def update(self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Add one image: two `(H, W)` bool masks of one size."""
        if prediction.shape != truth.shape:
            raise ValueError(f"`prediction` is {prediction.shape} but `truth` is {truth.shape}; sizes must agree.")
        self.intersections.append(int((prediction & truth).sum()))
        self.unions.append(int((prediction | truth).sum()))

    def compute(self) -> dict[str, float]:
        """Return `{"IoU", "nIoU"}`."""
        i, u = np.array(self.intersections, dtype=float), np.array(self.unions, dtype=float)
        return {
            "IoU": float(i.sum() / max(u.sum(), 1.0)),
            "nIoU": float(np.mean(i / np.maximum(u, 1.0))) if len(i) else 0.0,
        }
