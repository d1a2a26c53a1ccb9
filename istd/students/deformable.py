"""Deformable convolution from indexing alone, so that it differentiates any number of times, in both modes."""

import torch
from torch import Tensor, nn


def sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear samples of `(B, c, H, W)` at fractional places `(B, n)` in pixels -> `(B, n, c)`; zero outside.

    Differentiable with respect to the map and the places (`torch.nn.functional.grid_sample` is once only, and a
    hypergradient needs second derivatives).
    """
    batch, channels, height, width = x.shape
    pixels = x.movedim(1, -1).reshape(-1, channels)
    first = torch.arange(batch, device=x.device)[:, None] * (height * width)
    top, left = rows.detach().floor(), columns.detach().floor()
    out = x.new_zeros(())
    for y in (top, top + 1):
        for z in (left, left + 1):
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            weight = (1 - (rows - y).abs()) * (1 - (columns - z).abs()) * inside
            index = first + y.clamp(0, height - 1).long() * width + z.clamp(0, width - 1).long()
            out = out + pixels[index] * weight[..., None]
    return out


class DeformableConv(nn.Module):
    """Modulated deformable convolution of an odd kernel, `(B, c, H, W) -> (B, c, H, W)`.

    `y(p) = b + sum_k W_k m_k(p) x(p + p_k + d_k(p))`: places p_k of the kernel, moved by d_k (down, right) in pixels
    and weighted by m_k in (0, 1), both from an ordinary convolution of the same kernel, which starts at d = 0, m = 1/2.

    Source: Zhu et al. (Deformable ConvNets v2, CVPR 2019), equation 1.
    """

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        convolution = nn.Conv2d(channels, channels, kernel)  # for its initialisation
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        size = kernel[0] * kernel[1]
        self.offsets = nn.Conv2d(channels, 3 * size, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution."""
        batch, channels, height, width = x.shape
        kh, kw = self.kernel
        size = kh * kw
        moves = self.offsets(x).movedim(1, -1)  # (B, H, W, 3 K): K pairs (down, right), then K weights
        down, right, weight = moves[..., 0 : 2 * size : 2], moves[..., 1 : 2 * size : 2], moves[..., 2 * size :]

        def places(start: int, stop: int) -> Tensor:
            return torch.arange(start, stop, device=x.device, dtype=moves.dtype)

        rows = places(0, height)[:, None, None] + places(-(kh // 2), kh // 2 + 1).repeat_interleave(kw)
        columns = places(0, width)[:, None] + places(-(kw // 2), kw // 2 + 1).repeat(kh)
        samples = sample(x, (rows + down).flatten(1), (columns + right).flatten(1))
        samples = samples * weight.sigmoid().flatten(1)[..., None]
        kernel = self.weight.flatten(2).transpose(1, 2).flatten(1)  # (c, K c), as `samples` are laid out
        out = nn.functional.linear(samples.view(batch, height, width, size * channels), kernel, self.bias)
        return out.movedim(-1, 1)
