"""Adam's step on one tensor with its derivative, in float64 but block by block: no float64 copy of anything whole.

Written as torch operations, an exact step keeps some seven float64 tensors for its backward pass. Here the graph keeps
the gradient and the parameter as they are, and the new moments, which are the optimizer's state anyway; everything
else is computed from them a block at a time, in the same precision.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 17
"""Numbers per block: 1 MB each in float64, which stays in a processor's cache."""

LEAST = 1 << 16
"""Numbers in the largest tensor from which on the blocks pay; below, composed operations are quicker."""


class AdamNumbers(NamedTuple):
    """The numbers of one step: `u = -rate m / (sqrt(v) + floor) - shrink w`, `g = sign grad + l2 w`."""

    b1: Any
    b2: Any
    rate: Any
    floor: Any
    sign: float
    l2: float
    shrink: Any


class AdamStep(torch.autograd.Function):
    """`(grad, w, m, v, numbers) -> (u, m', v')` with m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2.

    The moments are float64 (float32 on a device without it), u has the dtype of w. It has no second derivative and
    no forward-mode rule; the composed operations of `bilevel.adam` have both.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, w: Tensor, m: Tensor, v: Tensor, numbers: AdamNumbers
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the outputs block by block."""
        out, mean, square = torch.empty_like(w), torch.empty_like(m), torch.empty_like(v)
        for grad_, w_, m_, v_, out_, mean_, square_ in _blocks(grad, w, m, v, out, mean, square):
            g = _effective(grad_, w_, m.dtype, numbers)
            mean_.copy_(torch.lerp(m_, g, 1 - numbers.b1))
            square_.copy_(torch.addcmul(numbers.b2 * v_, g, g, value=1 - numbers.b2))
            step = mean_ / _root(square_).add_(numbers.floor) * -numbers.rate
            out_.copy_(step.sub_(w_.to(m.dtype), alpha=numbers.shrink) if numbers.shrink else step)
        ctx.numbers = numbers
        ctx.save_for_backward(grad, w, mean, square)
        ctx.set_materialize_grads(False)
        return out, mean, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_mean: Tensor | None, d_square: Tensor | None) -> tuple[Any, ...]:
        """Adjoints of grad, w, m and v, with sqrt's derivative taken as 0 at v' = 0."""
        grad, w, mean, square = ctx.saved_tensors
        n: AdamNumbers = ctx.numbers
        dtype = mean.dtype
        to_grad, to_m, to_v = torch.empty_like(grad), torch.empty_like(mean), torch.empty_like(square)
        to_w = torch.empty_like(w) if n.l2 or n.shrink else None
        nothing = torch.zeros((), dtype=dtype, device=w.device).expand_as(w)
        given = [nothing if d is None else d for d in (d_out, d_mean, d_square)]
        columns = (grad, w, mean, square, *given, to_grad, to_m, to_v, w if to_w is None else to_w)
        for grad_, w_, mean_, square_, d_out_, d_mean_, d_square_, to_grad_, to_m_, to_v_, to_w_ in _blocks(*columns):
            g, root = _effective(grad_, w_, dtype, n), _root(square_)
            along = d_out_.to(dtype)
            pulled = along * -n.rate / (root + n.floor)  # d u / d m'
            d_m = pulled + d_mean_
            bent = (pulled * mean_ / (root + n.floor) / (2 * root)).masked_fill_(square_ < _tiny(dtype), 0.0)
            d_v = d_square_ - bent
            d_g = (1 - n.b1) * d_m + 2 * (1 - n.b2) * g * d_v
            to_m_.copy_(n.b1 * d_m)
            to_v_.copy_(n.b2 * d_v)
            to_grad_.copy_(n.sign * d_g)
            if to_w is not None:
                to_w_.copy_(n.l2 * d_g - n.shrink * along)
        return to_grad, to_w, to_m, to_v, None


def _effective(grad: Tensor, w: Tensor, dtype: torch.dtype, numbers: AdamNumbers) -> Tensor:
    """Ascent and L2 decay belong to the gradient."""
    g = numbers.sign * grad.to(dtype)
    return g.add_(w.to(dtype), alpha=numbers.l2) if numbers.l2 else g


def _root(v: Tensor) -> Tensor:
    """`sqrt(v)`; at v = 0 the root of the smallest normal number, which vanishes beside any epsilon."""
    return v.clamp(min=_tiny(v.dtype)).sqrt_()


def _tiny(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).tiny)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, about `BLOCK` numbers at a time, as views in whatever memory format they have."""
    rows = [x.reshape(1) if x.ndim == 0 else x for x in tensors]
    count = len(rows[0])
    size = max(BLOCK // max(rows[0].numel() // max(count, 1), 1), 1)
    for first in range(0, count, size):
        yield tuple(x[first : first + size] for x in rows)
