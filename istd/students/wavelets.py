"""Haar wavelets: orthonormal 2x2 filters, as sums and differences."""

import torch
from torch import Tensor
from torch.nn import functional as F


def haar_bands(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undecimated Haar transform, `(B, c, H, W)` -> four of the same size: (LL, LH, HL, HH), zero outside.

    With a the pixel, u and l its neighbours above and to the left and d the one diagonally above to the left:
    LL = (d + u + l + a)/2, LH = (d + u - l - a)/2 (between rows), HL = (d - u + l - a)/2 (between columns),
    HH = (d - u - l + a)/2.
    """
    x = F.pad(0.5 * x, (1, 0, 1, 0))
    above, here = x[..., :-1, :], x[..., 1:, :]
    total, change = above + here, above - here
    return (
        total[..., :-1] + total[..., 1:],
        change[..., :-1] + change[..., 1:],
        total[..., :-1] - total[..., 1:],
        change[..., :-1] - change[..., 1:],
    )


def haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Haar transform of 2x2 blocks, `(B, c, H, W)` -> four of `(B, c, H/2, W/2)`: (LL, LH, HL, HH) as `haar_bands`."""
    x = 0.5 * x
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    total, change = top + bottom, top - bottom
    return (
        total[..., 0::2] + total[..., 1::2],
        change[..., 0::2] + change[..., 1::2],
        total[..., 0::2] - total[..., 1::2],
        change[..., 0::2] - change[..., 1::2],
    )


def joined_haar(x: Tensor) -> Tensor:
    """`haar` with the bands of a channel side by side: `(B, c, H, W) -> (B, 4 c, H/2, W/2)`."""
    return torch.stack(haar(x), dim=2).flatten(1, 2)
