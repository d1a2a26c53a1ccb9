"""Normalisation layers whose forward-mode derivative can itself be differentiated.

Forward mode through torch's batch, instance and layer normalisation is right once. But its rules use the mean and the
inverse deviation that the kernel saved, and torch takes those for constants: another derivative of the result, by
reverse or by forward mode, leaves out how they depend on the input (pytorch/pytorch issues 196699 and 196700; group
and RMS normalisation are composed of differentiable operations and right). Here the three are written as such
operations. Reverse mode, and forward mode over reverse mode, need none of this: torch's backward formulas are right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class DifferentiableNormalisation(TorchFunctionMode):
    """Inside this context, normalisation layers in training mode are composed of differentiable operations.

    Same values to rounding, same dtypes, and the same updates of running statistics.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace what `_REPLACED` names; call everything else."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    per_channel = (-1, *(1,) * (input.ndim - 2))
    centred, mean, var, scale = _moments(input, [0, *range(2, input.ndim)], eps)
    _follow(running_mean, running_var, mean, var, input.numel() / input.shape[1], momentum)
    return _scale_and_shift(centred, scale, weight, bias, per_channel).to(input.dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    per_channel = (-1, *(1,) * (input.ndim - 2))
    centred, mean, var, scale = _moments(input, list(range(2, input.ndim)), eps)
    _follow(running_mean, running_var, mean.mean(0), var.mean(0), input[0, 0].numel(), momentum)
    return _scale_and_shift(centred, scale, weight, bias, per_channel).to(input.dtype)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *ignored: Any,
) -> Tensor:
    centred, _, _, scale = _moments(input, list(range(-len(normalized_shape), 0)), eps)
    out = _scale_and_shift(centred * scale, 1.0, weight, bias, tuple(normalized_shape))
    if out.dtype == input.dtype:
        return out
    # Half precision: autocast runs this layer in float32 on some devices, so the kernel says what it would return.
    empty = torch.empty(0, *normalized_shape, dtype=input.dtype, device=input.device)
    return out.to(F.layer_norm(empty, normalized_shape).dtype)


def _moments(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x - mean`, mean and var over `dims`, and `1 / sqrt(var + eps)`; half precision widens, as in torch's kernels."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    return wide - mean, mean, var, (var + eps).rsqrt()


def _scale_and_shift(
    x: Tensor, scale: Tensor | float, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """`x * scale * weight + bias`: scale and weight first, which are small where both belong to channels."""
    if weight is not None:
        scale = scale * weight.view(shape)
    return x * scale if bias is None else x * scale + bias.view(shape)


def _follow(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: float, momentum: float
) -> None:
    """Move the running statistics, in place, towards those of `count` numbers a channel."""
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.detach().reshape(running_mean.shape).to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var.detach() * (count / (count - 1))
            running_var.lerp_(unbiased.reshape(running_var.shape).to(running_var.dtype), momentum)


def _torch_batch_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, _: bool
) -> Tensor:
    return _batch_norm(input, mean, var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, _: bool
) -> Tensor:
    return _instance_norm(input, mean, var, weight, bias, own, momentum, eps)


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _layer_norm,
}
