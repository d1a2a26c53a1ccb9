"""Fourier transforms of 8x8 blocks as products with a real 64x64 matrix.

A library's FFT of very small blocks spends its time on overheads, makes complex maps, and exports to few runtimes. The
real Fourier basis of a block has 30 cosines, 30 sines (one of each per pair of frequencies f, -f), and four
frequencies that are their own negative. Transforms stay in float32 where the rest runs in half precision.
"""

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8
HALF = BLOCK // 2 + 1  # columns of a spectrum of real numbers, as `torch.fft.rfft2` stores it
PAIRS, SELF = 30, 4


@functools.cache
def _frequencies() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """One of each pair (with its column below `HALF`), and those that are their own negative."""
    alone = [(u, v) for u in (0, BLOCK // 2) for v in (0, BLOCK // 2)]
    pairs: list[tuple[int, int]] = []
    for u in range(BLOCK):
        for v in range(HALF):
            if (u, v) not in alone and (-u % BLOCK, -v % BLOCK) not in pairs:
                pairs.append((u, v))
    return pairs, alone


def _basis(like: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and inverse matrices, (64, 64): coefficients are `pixels @ forward`, pixels `coefficients @ inverse`."""
    pairs, alone = _frequencies()
    place = torch.arange(BLOCK, device=like.device)
    y, x = place.repeat_interleave(BLOCK), place.repeat(BLOCK)

    def angles(frequencies: list[tuple[int, int]]) -> Tensor:
        rows = [(u * y + v * x) % BLOCK for u, v in frequencies]
        return torch.stack(rows).to(torch.float64) * (2 * math.pi / BLOCK)

    matrix = torch.cat([angles(pairs).cos(), angles(pairs).sin(), angles(alone).cos()])
    size = BLOCK * BLOCK
    norm = torch.full((size, 1), 2 / size, dtype=torch.float64, device=like.device)
    norm[2 * PAIRS :] = 1 / size
    return matrix.T.to(like.dtype), (matrix * norm).to(like.dtype)


def _gains(spectrum: Tensor) -> Tensor:
    """`(c, 8, 5)` real gains -> `(c, 64)` in the order of the basis; what is odd in the frequency has no effect."""
    pairs, alone = _frequencies()
    own = spectrum[:, [u for u, _ in pairs], [v for _, v in pairs]]
    # Column v is stored for v < 5 alone; in columns 0 and 4 both u and -u are, and a real block sees their mean.
    twin = [(-u % BLOCK if v in (0, HALF - 1) else u, v) for u, v in pairs]
    own = (own + spectrum[:, [u for u, _ in twin], [v for _, v in twin]]) / 2
    return torch.cat([own, own, spectrum[:, [u for u, _ in alone], [v for _, v in alone]]], dim=1)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    kind = x.device.type  # the meta device, on which operations are counted, has no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _blocks(x: Tensor) -> Tensor:
    """`(B, c, H, W) -> (B, c, blocks, 64)` in float32 at least; sides are filled up with zeros to multiples of 8."""
    height, width = x.shape[-2:]
    missing = (0, -width % BLOCK, 0, -height % BLOCK)
    x = F.pad(x, missing) if any(missing) else x
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return split.transpose(3, 4).reshape(batch, channels, -1, BLOCK * BLOCK)


def _unblocks(blocks: Tensor, size: torch.Size) -> Tensor:
    """The inverse of `_blocks` for a map of `size`."""
    batch, channels, height, width = size
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    x = blocks.view(batch, channels, rows, columns, BLOCK, BLOCK).transpose(3, 4)
    return x.reshape(batch, channels, rows * BLOCK, columns * BLOCK)[..., :height, :width]


def block_filter(x: Tensor, spectrum: Tensor) -> Tensor:
    """`irfft2(spectrum * rfft2(block))` of every 8x8 block: a circular convolution with a kernel per channel.

    Args:
        x: `(B, c, H, W)`.
        spectrum: `(c, 8, 5)` real gains in the layout of `torch.fft.rfft2`.

    Returns:
        `(B, c, H, W)`, of float32 at least.
    """
    with _without_autocast(x):
        blocks = _blocks(x)
        forward, inverse = _basis(blocks)
        gains = _gains(spectrum.to(blocks.dtype))[:, None]
        # Two products with every block, or, where there are many, one with a matrix per channel that is made first.
        if blocks.shape[0] * blocks.shape[2] > BLOCK * BLOCK:
            return _unblocks(blocks @ (forward * gains @ inverse), x.shape)
        return _unblocks(blocks @ forward * gains @ inverse, x.shape)


def block_product(a: Tensor, b: Tensor) -> Tensor:
    """`irfft2(rfft2(block of a) * rfft2(block of b))` for every 8x8 block: the circular convolution of both.

    Args:
        a: `(B, c, H, W)`.
        b: of the same shape.

    Returns:
        `(B, c, H, W)`, of float32 at least.
    """
    with _without_autocast(a):
        blocks = _blocks(a)
        forward, inverse = _basis(blocks)
        (ac, asin, a0), (bc, bsin, b0) = (
            torch.split(x @ forward, [PAIRS, PAIRS, SELF], dim=-1) for x in (blocks, _blocks(b))
        )
        product = torch.cat([ac * bc - asin * bsin, ac * bsin + asin * bc, a0 * b0], dim=-1)
        return _unblocks(product @ inverse, a.shape)
