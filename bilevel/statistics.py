"""Running statistics of batch normalisation as functions of the inner variables, instead of stored constants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_BatchNorm = Callable[..., Tensor]


class MeasuredStatistics:
    """Mean and variance of every batch normalisation in one pass, for use in another one.

    Both passes run in one evaluation of a loss, so the statistics carry their derivative with respect to the variables.

    Example:
        >>> layer, x = torch.nn.BatchNorm1d(2).eval(), torch.randn(50, 2)
        >>> statistics = MeasuredStatistics()
        >>> with statistics.measured():
        ...     _ = layer(x)
        >>> with statistics.used():
        ...     y = layer(x)
        >>> bool(y.mean(0).abs().max() < 1e-6)  # stored are 0 and 1; used are those of x
        True
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, layers with running statistics normalise by those of the batch, in eval mode too, and note them.

        A layer that is used several times keeps its last statistics; nothing stored changes.
        """
        with _Replaced(self._measure):
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, layers in eval mode normalise by the statistics that were measured for them, or by those stored."""
        with _Replaced(self._use):
            yield

    def _measure(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is None or running_var is None:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        dims = [0, *range(2, input.ndim)]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        var, mean = torch.var_mean(wide, dims, correction=1)  # unbiased, as the stored ones are
        self._found[id(running_mean)] = mean, var
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)

    def _use(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or id(running_mean) not in self._found:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        # torch's kernel takes running statistics for constants, so the affine map is written out.
        mean, var = (x.view(-1, *(1,) * (input.ndim - 2)) for x in self._found[id(running_mean)])
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.view_as(scale)
        out = (input - mean) * scale
        return (out if bias is None else out + bias.view_as(scale)).to(input.dtype)


class _Replaced(TorchFunctionMode):
    """`F.batch_norm`, which every layer calls, replaced by another function of its arguments."""

    def __init__(self, batch_norm: _BatchNorm) -> None:
        super().__init__()
        self._batch_norm = batch_norm

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))
