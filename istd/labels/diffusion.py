"""Pseudo-masks by heat diffusion: heat put in at the point spreads inside the target and stops at its edges.

    du/dt = div(D grad u),    D = D0 exp(-beta (alpha |grad c| + (1 - alpha) E)),    u(0) = a small blob at the point

with c the window's contrast (background 0, peak 1) and E its local entropy in [0, 1]. The heat at the end, divided by
its maximum h, is fused with the region S that a superpixel rule gives, and cut: `rho h + (1 - rho) S >= 1/2`.

The equation is solved on the pixel grid, all windows at once, implicit in time and split by axis (Marchuk, 1990): heat
is conserved, no value leaves the range of u(0), and any D0 and any time step are stable. Everything is differentiable
in D0, beta, alpha and rho. The published form moves particles at random and is neither.

Source: Diffuse to Detect (2026); the grid solver, the contrast in place of grey levels, and S (the share of levels of
the half-maximum rule at which a pixel belongs to the peak, in place of a SLIC segment) are ours.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from istd.data.dataset import Sample
from istd.data.points import Points
from istd.labels.crf import DenseCRF
from istd.labels.initial import INITIAL_MASKS, HalfMaximum, Image, InitialMask, window_around

BINS = 8  # of the local histogram whose entropy is taken


def diffuse(heat: Tensor, conductivity: Tensor, time: float, steps: int) -> Tensor:
    """Heat after some time, with no flow through the window's border.

    Args:
        heat: `(B, h, w)`, u(0).
        conductivity: `(B, h, w)`, D in px^2 per unit of time, positive.
        time: how long.
        steps: number of implicit steps; more are more accurate, any number is stable.

    Returns:
        `(B, h, w)`, of the same sum and within the range of `heat`.
    """
    rows, columns = (_propagator(d, time / steps) for d in (conductivity, conductivity.mT))
    for _ in range(steps):
        heat = (rows @ heat[..., None])[..., 0]
        heat = (columns @ heat.mT[..., None])[..., 0].mT
    return heat


def _propagator(conductivity: Tensor, dt: float) -> Tensor:
    """One implicit step along the last axis as a matrix per row, `(B, h, w) -> (B, h, w, w)`.

    `(1 - dt L)^-1` with L the row's Laplacian: a face between two pixels conducts like their harmonic mean. The system
    is diagonally dominant, and the same in all steps.
    """
    left, right = conductivity[..., :-1], conductivity[..., 1:]
    flow = dt * 2 * left * right / (left + right)
    diagonal = 1 + F.pad(flow, (1, 0)) + F.pad(flow, (0, 1))
    system = torch.diag_embed(diagonal) - torch.diag_embed(flow, 1) - torch.diag_embed(flow, -1)
    inverse: Tensor = torch.linalg.inv(system)
    return inverse


def local_entropy(contrast: Tensor, size: int = 5) -> Tensor:
    """Entropy of the histogram of contrasts in `size x size` pixels, `(B, h, w)` in [0, 1]."""
    bins = (contrast.clamp(0, 1 - 1e-6) * BINS).long()
    shares = F.one_hot(bins, BINS).movedim(-1, 1).to(contrast.dtype)
    shares = F.avg_pool2d(shares, size, stride=1, padding=size // 2, count_include_pad=False)
    return -(shares * shares.clamp(min=1e-12).log2()).sum(1) / math.log2(BINS)


class HeatDiffusion(nn.Module):
    """The diffusion with its four learnable numbers; they stay in their ranges whatever the step.

    D0 and alpha start at the published values. beta and rho belong to the published scaling of grey levels and to its
    superpixels; here they were chosen on synthetic scenes (among 1, 2, 3, 4 and 0.3, 0.4, 0.5).

    Args:
        conductivity: D0 > 0.
        stopping: beta > 0.
        balance: alpha in (0, 1), of gradients against entropy.
        mixing: rho in (0, 1), of heat against the region S.
        time: how long heat flows.
        steps: implicit steps.
    """

    def __init__(
        self,
        conductivity: float = 3.2,
        stopping: float = 2.0,
        balance: float = 0.6,
        mixing: float = 0.5,
        time: float = 8.0,
        steps: int = 8,
    ) -> None:
        super().__init__()
        for name, value in (("conductivity", conductivity), ("stopping", stopping), ("time", time)):
            if value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        for name, value in (("balance", balance), ("mixing", mixing)):
            if not 0 < value < 1:
                raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
        self.log_conductivity = nn.Parameter(torch.tensor(conductivity).log())
        self.log_stopping = nn.Parameter(torch.tensor(stopping).log())
        self.balance_logit = nn.Parameter(torch.tensor(balance).logit())
        self.mixing_logit = nn.Parameter(torch.tensor(mixing).logit())
        self.time, self.steps = time, steps

    @torch.no_grad()
    def readable(self) -> dict[str, float]:
        """The four numbers by their symbols."""
        return {
            "D0": float(self.log_conductivity.exp()),
            "beta": float(self.log_stopping.exp()),
            "alpha": float(self.balance_logit.sigmoid()),
            "rho": float(self.mixing_logit.sigmoid()),
        }

    def heat(self, contrast: Tensor) -> Tensor:
        """`(B, n, n)` contrasts with the point in the middle -> `(B, n, n)` heat, its maximum 1."""
        out = diffuse(_blob(contrast), self.conductivity(contrast), self.time, self.steps)
        return out / out.amax((1, 2), keepdim=True)

    def conductivity(self, contrast: Tensor) -> Tensor:
        """D `(B, n, n)` of the contrasts, at least 1e-6."""
        rows, cols = torch.gradient(contrast, dim=(1, 2))
        gradient = (rows.square() + cols.square() + 1e-12).sqrt()
        alpha = self.balance_logit.sigmoid()
        hindrance = alpha * gradient + (1 - alpha) * local_entropy(contrast)
        return (self.log_conductivity.exp() * torch.exp(-self.log_stopping.exp() * hindrance)).clamp(min=1e-6)

    def forward(self, contrast: Tensor, region: Tensor) -> Tensor:
        """Soft masks `rho h + (1 - rho) S`, `(B, n, n)`; the mask is where they reach 1/2."""
        rho = self.mixing_logit.sigmoid()
        return rho * self.heat(contrast) + (1 - rho) * region


def _blob(like: Tensor) -> Tensor:
    """A Gaussian of sigma 1 px in the middle of each window."""
    n = like.shape[-1]
    distance = torch.arange(n, dtype=like.dtype, device=like.device) - n // 2
    line = torch.exp(-distance.square() / 2)
    return (line[:, None] * line).expand_as(like)


class Windows(NamedTuple):
    """What the diffusion sees of some targets, `(n, side, side)` each.

    Attributes:
        contrast: c, background 0 and peak 1; the image is mirrored at its border.
        region: S in [0, 1].
        peaks: `(n, 2)` rows and columns that the windows are centred on.
        accepted: `(n,)` levels of the half-maximum rule that do not touch the window's border.
    """

    contrast: NDArray[np.float32]
    region: NDArray[np.float32]
    peaks: NDArray[np.int64]
    accepted: NDArray[np.int64]


def cut_windows(image: Image, points: Points, half: int, rule: HalfMaximum) -> Windows:
    """Cut and normalise the windows of half side `half` around the peaks next to some points."""
    side = 2 * half + 1
    padded = np.pad(image, half, mode="symmetric")
    peaks = np.array([rule.peak(image, row, col) for row, col in points.tolist()], dtype=np.int64).reshape(-1, 2)
    contrast, region = np.zeros((2, len(points), side, side), dtype=np.float32)
    accepted = np.zeros(len(points), dtype=np.int64)
    outside = np.ones((side, side), dtype=bool)
    outside[half - rule.core : half + rule.core + 1, half - rule.core : half + rule.core + 1] = False
    for i, (row, col) in enumerate(peaks.tolist()):
        window = padded[row : row + side, col : col + side]
        background = float(np.median(window[outside]))
        peak = float(window[half - 1 : half + 2, half - 1 : half + 2].max())
        contrast[i] = np.clip((window - background) / max(peak - background, 1e-3), 0.0, 1.5)
        votes, accepted[i] = rule.votes(window, half, half)
        region[i] = votes / max(accepted[i], 1)
    return Windows(contrast, region, peaks, accepted)


@dataclass(frozen=True, eq=False)
class DiffusionMask:
    """The diffusion as a rule for start masks, all points of an image at once.

    A target that no level of the half-maximum rule holds inside its window is tried in a larger one; where that fails
    too, the mask is 3x3 pixels and the point counts as doubtful.

    Attributes:
        model: the diffusion.
        rule: where windows, peaks and the regions S come from.
        crf: refines the mask in each window, as the release does, or None.
    """

    model: HeatDiffusion
    rule: HalfMaximum = field(default_factory=HalfMaximum)
    crf: DenseCRF | None = None

    released_crf: ClassVar[DenseCRF] = DenseCRF(bilateral=(8, 10, 110), iterations=5)

    def __call__(self, sample: Sample) -> InitialMask:
        """Draw the mask of one image."""
        image, points = sample.image, sample.points
        mask, reliable = np.zeros(image.shape, dtype=bool), np.zeros(len(points), dtype=bool)
        waiting = np.arange(len(points))
        for half in self.rule.windows:
            if not len(waiting):
                break
            found = cut_windows(image, points[waiting], half, self.rule)
            done = found.accepted > 0
            if done.any():
                self._paint(mask, image, found, done, half)
            reliable[waiting[done]] = 2 * found.accepted[done] >= len(self.rule.levels)
            waiting = waiting[~done]
        for row, col in points[waiting].tolist():
            rows, cols, _, _ = window_around(image.shape, *self.rule.peak(image, row, col), 1)
            mask[rows, cols] = True
        return InitialMask(mask, reliable)

    @torch.no_grad()
    def _paint(
        self, mask: NDArray[np.bool_], image: Image, found: Windows, chosen: NDArray[np.bool_], half: int
    ) -> None:
        soft = self.model(torch.from_numpy(found.contrast[chosen]), torch.from_numpy(found.region[chosen]))
        for window, (row, col) in zip((soft >= 0.5).numpy(), found.peaks[chosen].tolist(), strict=True):
            rows, cols, r, c = window_around(mask.shape, row, col, half)
            top, left = half - r, half - c
            inside = window[top : top + rows.stop - rows.start, left : left + cols.stop - cols.start]
            mask[rows, cols] |= inside if self.crf is None else self.crf(inside, image[rows, cols])


INITIAL_MASKS.register("diffusion", DiffusionMask(HeatDiffusion()))
