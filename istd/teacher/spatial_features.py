"""Frozen features of whole images, computed once, and cut out again where a crop lies: same flips, turns and zoom."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from istd.teacher.frozen import FrozenVFM
from istd.teacher.pyramid import on_grid


@dataclass(frozen=True)
class SpatialFeatures:
    """Feature maps of images, and features at any place of them.

    Map k of image i covers the whole image: its value at column x (pixel centres are whole numbers) is the bilinear
    sample at `(x + 1/2) w_k / W - 1/2`, with w_k and W the widths of map and image; rows likewise. Beyond the border
    lies what training crops hold there, the mirrored image (without its border pixel).

    Attributes:
        maps: of every image its maps `[(D_k, h_k, w_k)]`, on the CPU.
        sizes: height and width of every image.
    """

    maps: tuple[tuple[Tensor, ...], ...]
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.maps) != len(self.sizes):
            raise ValueError(f"`maps` are of {len(self.maps)} images and `sizes` of {len(self.sizes)}.")

    @classmethod
    def compute(
        cls,
        vfm: FrozenVFM,
        images: Sequence[NDArray[np.float32]],
        device: torch.device | None = None,
        *,
        enlarge: float = 2.0,
        cell: int = 4,
        dtype: torch.dtype = torch.float16,
        progress: bool = True,
    ) -> "SpatialFeatures":
        """Run the VFM once on every image.

        In half precision, EfficientNet-Lite2 with the defaults takes 1.2 MB for an image of 256 x 256 pixels.

        Args:
            vfm: the frozen model.
            images: `(H, W)` intensities in [0, 1], of any sizes.
            device: where the model is; default: CPU.
            enlarge: the model sees images at this multiple of their size.
            cell: maps that are finer than this many pixels of the image are averaged over such cells; 1 keeps all.
            dtype: that maps are kept in.
            progress: show a progress bar.
        """
        rows, sizes = [], []
        for image in tqdm(images, desc="frozen features", unit="image", disable=not progress, leave=False):
            height, width = image.shape
            x = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device or torch.device("cpu"))
            finest = (-(-height // cell), -(-width // cell))
            maps = [m if m.shape[-1] <= finest[1] else on_grid(m, finest) for m in vfm.maps(x, enlarge)]
            rows.append(tuple(m[0].to(dtype).cpu() for m in maps))
            sizes.append((height, width))
        return cls(tuple(rows), tuple(sizes))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps)

    def at(self, index: int, rows: Tensor, cols: Tensor) -> list[Tensor]:
        """Features of image `index` at places `(h, w)` of real rows and columns: of every depth `(h, w, D_k)`, float32.

        Places beyond the image are those that reflection at its border pixels brings into it.
        """
        height, width = self.sizes[index]
        rows, cols = _reflected(rows.double(), height), _reflected(cols.double(), width)
        out = []
        for level in self.maps[index]:
            u, v = (
                (x + 0.5) * (n / size) - 0.5
                for x, n, size in zip((rows, cols), level.shape[1:], (height, width), strict=True)
            )
            out.append(_bilinear(level, u, v))
        return out

    def points(self, index: int, points: NDArray[np.generic]) -> Tensor:
        """Features of image `index` at `(n, 2)` rows and columns, depths side by side: `(n, sum D_k)`."""
        place = torch.from_numpy(np.asarray(points, dtype=np.float64).reshape(-1, 2))
        return torch.cat([x[:, 0] for x in self.at(index, place[:, :1], place[:, 1:])], dim=1)

    def tokens(self, index: Tensor, places: Tensor, crop: int, cell: int = 4) -> Tensor:
        """Tokens of crops on a grid of cells of `cell` pixels, for SpatialSCAM and SAMF.

        Args:
            index: `(B,)` images.
            places: `(B, 2, 3)`, where the crops lie: see `istd.data.crops.CropLoader`.
            crop: their side in pixels.
            cell: side of a cell in pixels of the crop; divides `crop`.

        Returns:
            `(B, K, h, w, D)`, or `(B, 1, h, w, sum D_k)` where the depths' channels differ; h = w = crop / cell.
        """
        if crop % cell:
            raise ValueError(f"`cell` must divide `crop` ({crop} px), got {cell}.")
        centre = (torch.arange(crop // cell, dtype=torch.float64) + 0.5) * cell - 0.5
        grid = torch.stack(torch.meshgrid(centre, centre, indexing="ij"), dim=-1)
        rows = []
        for i, place in zip(index.tolist(), places.double(), strict=True):
            at = grid @ place[:, :2].T + place[:, 2]
            rows.append(_side_by_side(self.at(i, at[..., 0], at[..., 1])))
        return torch.stack(rows)

    def whole(self, index: int, stride: int, cell: int = 4) -> Tensor:
        """Tokens of a whole image, padded at the bottom and right to multiples of `stride` as in prediction.

        Returns:
            `(1, K, h, w, D)` or `(1, 1, h, w, sum D_k)`; h and w are the padded sides in cells.
        """
        sides = [-(-n // stride) * stride for n in self.sizes[index]]
        rows, cols = ((torch.arange(-(-n // cell), dtype=torch.float64) + 0.5) * cell - 0.5 for n in sides)
        return _side_by_side(self.at(index, *torch.meshgrid(rows, cols, indexing="ij")))[None]


def _side_by_side(depths: list[Tensor]) -> Tensor:
    if len({x.shape[-1] for x in depths}) == 1:
        return torch.stack(depths)
    return torch.cat(depths, dim=-1)[None]


def _reflected(x: Tensor, n: int) -> Tensor:
    """Real coordinates brought into [-1/2, n - 1/2] by reflection at 0 and n - 1, the centres of the border pixels."""
    period = max(2 * (n - 1), 1)
    inside = (x >= -0.5) & (x <= n - 0.5)
    folded = (x % period).minimum(period - x % period)
    return torch.where(inside, x, folded)


def _bilinear(level: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Samples of a map `(D, h, w)` at rows u and columns v `(a, b)`, clamped to the map: `(a, b, D)` float32."""
    if not u.numel():
        return torch.empty(*u.shape, level.shape[0])
    u, v = u.clamp(0, level.shape[1] - 1), v.clamp(0, level.shape[2] - 1)
    top, left = int(u.min()), int(v.min())
    window = level[:, top : int(u.max()) + 2, left : int(v.max()) + 2].float()
    height, width = window.shape[1:]
    # In the units of grid_sample, -1 and 1 are the centres of the first and the last pixel.
    y, x = 2 * (u - top) / max(height - 1, 1) - 1, 2 * (v - left) / max(width - 1, 1) - 1
    grid = torch.stack([x, y], dim=-1)[None].float()
    return F.grid_sample(window[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0].permute(
        1, 2, 0
    )
