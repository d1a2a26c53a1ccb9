"""What every frozen vision foundation model has in common: it is never trained, and it gives maps of features."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenVFM(nn.Module, ABC):
    """A frozen backbone that turns images into feature maps of several depths.

    Args:
        model: the network.
        name: its timm name.
        pretrained: whether its weights are trained; tables and reports carry this.
        source: where the weights come from, in words.
        mean: of red, green and blue in the images of its training.
        std: likewise, their standard deviation.
        fixed_size: the only size `(H, W)` that it takes, or None.
    """

    mean: Tensor
    std: Tensor
    patch: int
    """Sides of images are resized to multiples of this."""
    widths: tuple[int, ...]
    """Channels of every depth."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        pretrained: bool,
        source: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        fixed_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        frozen: Any = model.eval().requires_grad_(False)
        self.model: Any = frozen
        self.name, self.pretrained, self.source, self.fixed_size = name, pretrained, source, fixed_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def depth(self) -> int:
        """Number of depths K."""
        return len(self.widths)

    @property
    def dim(self) -> int | tuple[int, ...]:
        """Channels D of every depth's tokens, or those of each where they differ: what an adapter is built with."""
        return self.widths[0] if len(set(self.widths)) == 1 else self.widths

    def train(self, mode: bool = True) -> "FrozenVFM":
        """Stay in eval mode: in train mode DINOv3 rescales its position encoding at random, call by call."""
        return super().train(False)

    def prepared(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`(B, 1, H, W)` in [0, 1] -> `(B, 3, H', W')` normalised, of `size`, or of the next multiples of `patch`.

        A model of fixed size gets that.
        """
        target = size or (*(-(-s // self.patch) * self.patch for s in images.shape[-2:]),)
        if self.fixed_size is not None:
            target = self.fixed_size
        if tuple(images.shape[-2:]) != target:
            images = F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True)
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std

    @abstractmethod
    def maps(self, images: Tensor, enlarge: float = 1.0) -> list[Tensor]:
        """Feature maps `[(B, D_k, h_k, w_k)]` of all depths, each of which covers the whole image.

        Args:
            images: `(B, 1, H, W)` intensities in [0, 1].
            enlarge: resize to this multiple of their size first: small targets gain from being seen larger.
        """

    @abstractmethod
    def tokens(self, images: Tensor, size: int | None = None) -> Tensor:
        """Features of all depths on one grid.

        Args:
            images: `(B, 1, H, W)` intensities in [0, 1].
            size: resize to `size x size` first; else sides are resized to the next multiple of `patch`.

        Returns:
            `(B, K, N, D)`; or `(B, 1, N, sum D_k)`, depths side by side, where their channels D_k differ.
        """

    def _enlarged(self, images: Tensor, enlarge: float) -> Tensor:
        height, width = (-(-round(enlarge * s) // self.patch) * self.patch for s in images.shape[-2:])
        return self.prepared(images, (height, width))
