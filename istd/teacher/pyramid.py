"""Frozen backbones whose levels differ in size and width: EfficientNet, ResNet, ConvNeXt and their like."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.teacher.frozen import FrozenVFM

CELL = 16  # px of the image that the model sees: the grid on which ViTs of this field work


class Level(NamedTuple):
    """One level of a pyramid: its channels, and its stride in pixels of the image that the model sees."""

    channels: int
    stride: int


class FrozenPyramid(FrozenVFM):
    """A frozen convolutional or hierarchical backbone; its levels are the depths.

    Args:
        model: a timm model with `forward_intermediates`.
        levels: of its intermediate maps, finest first.
        name: see `FrozenVFM`.
        pretrained: see `FrozenVFM`.
        source: see `FrozenVFM`.
        mean: see `FrozenVFM`.
        std: see `FrozenVFM`.
        fixed_size: see `FrozenVFM`.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: Sequence[Level],
        name: str,
        pretrained: bool,
        source: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(model, name, pretrained, source, mean, std, fixed_size)
        self.levels = tuple(levels)
        self.widths = tuple(level.channels for level in levels)
        self.patch = max(level.stride for level in levels)

    @torch.no_grad()
    def maps(self, images: Tensor, enlarge: float = 1.0) -> list[Tensor]:
        """Maps of all levels, finest first; see `FrozenVFM.maps`.

        Raises:
            ValueError: if the model's maps do not have the sizes that its strides promise.
        """
        return self._levels(self._enlarged(images, enlarge))

    @torch.no_grad()
    def tokens(self, images: Tensor, size: int | None = None) -> Tensor:
        """All levels on a grid of 16 px cells: `(B, 1, N, sum D_k)`; see `FrozenVFM.tokens`.

        Finer levels are averaged over a cell, coarser ones interpolated.
        """
        x = self.prepared(images, (size, size) if size else None)
        grid = max(x.shape[2] // CELL, 1), max(x.shape[3] // CELL, 1)
        return torch.cat([on_grid(m, grid) for m in self._levels(x)], dim=1).flatten(2).transpose(1, 2)[:, None]

    def _levels(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
        found = [(m.shape[1], *m.shape[-2:]) for m in maps]
        height, width = x.shape[-2:]
        due = [(level.channels, height // level.stride, width // level.stride) for level in self.levels]
        if found != due:
            raise ValueError(
                f"`vfm` {self.name!r} gives maps (channels, height, width) of {found} for an image of "
                f"{height}x{width}, where its strides promise {due}: its features cannot be placed on the image."
            )
        return maps


def on_grid(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring a map `(B, D, h, w)` to another grid: means over its cells where that is coarser, else interpolated."""
    if level.shape[-2] >= grid[0] and level.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(level, grid)
    return F.interpolate(level, grid, mode="bilinear", align_corners=False)
