"""Pseudo-masks as a differentiable function of learned numbers: the heat diffusion inside a training run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import directional_derivative
from istd.data.layouts import Sample
from istd.labels.diffusion import DiffusionMask, HeatDiffusion, cut_windows
from istd.labels.initial import HalfMaximum, Mask, window_around
from istd.labels.store import Labels, PseudoMasks, SoftMask

SHARPNESS = 20.0  # of a label's border: it rises from 0.1 to 0.9 while the fused heat rises by 0.22
CHUNK = 256  # windows at a time: their propagators are matrices


class _Target(NamedTuple):
    """A window of one target, and where it lies."""

    sample: int
    row: int
    col: int
    contrast: NDArray[np.float32]
    region: NDArray[np.float32]


class DiffusedLabels(Labels):
    """Soft labels `y = sigmoid(20 (m - 1/2))`, m the fused heat of `HeatDiffusion`, and their derivatives dy/dt_k.

    t are the four numbers of the diffusion. A crop of `maps` is cut, turned and zoomed like any label; `LearnedLabels`
    turns it into the label at other numbers. Where windows overlap, the larger label counts, and its derivative.

    Args:
        samples: images with points.
        model: the diffusion; `redraw` follows its present numbers.
        rule: where windows and regions come from.

    Attributes:
        tangents: one `(4, H, W)` float32 array per sample, zero for fixed samples.
    """

    def __init__(self, samples: Sequence[Sample], model: HeatDiffusion, rule: HalfMaximum | None = None) -> None:
        rule = rule or HalfMaximum()
        super().__init__(PseudoMasks.draw(samples, DiffusionMask(model, rule), admit_all=True))
        self.model = model
        self.tangents: list[NDArray[np.float32]] = []
        self._targets: list[_Target] = []
        self._squares: list[tuple[int, int, int]] = []
        for i, sample in enumerate(samples):
            self._place(i, sample, rule)
        self.redraw()

    def _place(self, i: int, sample: Sample, rule: HalfMaximum) -> None:
        """The windows of a sample's targets, the smallest that holds a peak; a square for what none holds."""
        waiting = np.arange(len(sample.points))
        for half in rule.windows:
            found = cut_windows(sample.image, sample.points[waiting], half, rule)
            for j in np.flatnonzero(found.accepted > 0):
                row, col = found.peaks[j].tolist()
                self._targets.append(_Target(i, row, col, found.contrast[j], found.region[j]))
            waiting = waiting[found.accepted == 0]
        for row, col in sample.points[waiting].tolist():
            self._squares.append((i, *rule.peak(sample.image, row, col)))

    def fix(self, indices: NDArray[np.int64], masks: Sequence[Mask]) -> None:
        """Give some samples masks that stay as they are."""
        self.now = self.now.fixing(indices, masks)
        for i in indices.tolist():
            self.tangents[i] = np.zeros_like(self.tangents[i])

    def maps(self, i: int) -> NDArray[np.float32]:
        """`(5, H, W)`: the soft label of sample i, and its derivatives."""
        return np.concatenate([self.now.soft[i][None], self.tangents[i]])

    def redraw(self) -> None:
        """Draw all labels that are not fixed with the diffusion's present numbers."""
        fixed = self.now.fixed
        self.tangents = [np.zeros((len(numbers(self.model)), *m.shape), dtype=np.float32) for m in self.now.soft]
        soft = {i: np.zeros_like(self.now.soft[i]) for i in np.flatnonzero(~fixed).tolist()}
        for i, row, col in self._squares:
            if not fixed[i]:
                rows, cols, _, _ = window_around(soft[i].shape, row, col, 1)
                soft[i][rows, cols] = 1.0
        for side in sorted({t.contrast.shape[-1] for t in self._targets}):
            alike = [t for t in self._targets if t.contrast.shape[-1] == side and not fixed[t.sample]]
            for start in range(0, len(alike), CHUNK):
                self._paste(soft, alike[start : start + CHUNK], side // 2)
        self.now = self.now.replaced(soft)

    def _paste(self, drawn: Mapping[int, SoftMask], targets: Sequence[_Target], half: int) -> None:
        contrast, region = (
            torch.from_numpy(np.stack([getattr(t, name) for t in targets])) for name in ("contrast", "region")
        )
        labels, slopes = labels_and_slopes(self.model, contrast, region)
        for target, label, slope in zip(targets, labels.numpy(), slopes.numpy(), strict=True):
            soft, tangent = drawn[target.sample], self.tangents[target.sample]
            rows, cols, r, c = window_around(soft.shape, target.row, target.col, half)
            top, left = half - r, half - c
            inside = slice(top, top + rows.stop - rows.start), slice(left, left + cols.stop - cols.start)
            larger = label[inside] > soft[rows, cols]
            soft[rows, cols] = np.where(larger, label[inside], soft[rows, cols])
            tangent[:, rows, cols] = np.where(larger, slope[:, inside[0], inside[1]], tangent[:, rows, cols])

    def state_dict(self) -> dict[str, Any]:
        """Labels, and the numbers that they were drawn with."""
        return super().state_dict() | {"numbers": numbers(self.model).clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`; the diffusion takes over its numbers."""
        super().load_state_dict(state)
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), state["numbers"], strict=True):
                p.copy_(value)
        self.redraw()


class LearnedLabels(nn.Module):
    """Crops `(B, 5, h, w)` of `DiffusedLabels.maps` -> labels `(B, 1, h, w)`: `y + sum_k (t_k - t0_k) dy/dt_k`.

    t0 are the numbers that the maps were drawn with: value and derivative are exact while the labels are fresh, and of
    first order during the few outer steps until they are redrawn (`settle`). Optimizer and hypergradients see the
    diffusion's own parameters.

    Args:
        diffusion: whose numbers are learned.
    """

    origin: Tensor

    def __init__(self, diffusion: HeatDiffusion) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.register_buffer("origin", numbers(diffusion).clone())

    def forward(self, maps: Tensor) -> Tensor:
        """Labels at the present numbers."""
        moved = torch.stack(list(self.diffusion.parameters())) - self.origin
        return (maps[:, :1] + torch.einsum("k,bkhw->bhw", moved, maps[:, 1:])[:, None]).clamp(0, 1)

    def settle(self) -> None:
        """The labels have been drawn with the present numbers."""
        self.origin.copy_(numbers(self.diffusion))


def numbers(model: nn.Module) -> Tensor:
    """The parameters of a module of scalars as one vector, detached."""
    return torch.stack([p.detach() for p in model.parameters()])


@torch.no_grad()
def labels_and_slopes(model: HeatDiffusion, contrast: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Labels `(B, n, n)` of windows and their derivatives `(B, 4, n, n)`, by forward mode, number by number."""
    device = next(model.parameters()).device
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach() for p in model.parameters())
    contrast, region = contrast.to(device), region.to(device)

    def draw(*parameters: Tensor) -> Tensor:
        heat = functional_call(model, dict(zip(names, parameters, strict=True)), (contrast, region))
        return torch.sigmoid(SHARPNESS * (heat - 0.5))

    slopes = []
    for k in range(len(values)):
        direction = tuple(torch.ones_like(v) if j == k else torch.zeros_like(v) for j, v in enumerate(values))
        labels, slope = directional_derivative(draw, values, direction)
        slopes.append(slope)
    return labels.cpu(), torch.stack(slopes, dim=1).cpu()
