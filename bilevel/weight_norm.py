"""Weight normalisation whose second derivative is right."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ComposedWeightNorm(TorchFunctionMode):
    """Inside this context, `g v / |v|` of weight normalisation is composed of differentiable operations.

    The gradient of torch's fused kernel is right, but the backward pass of that gradient takes |v|, which the kernel
    saved, for a constant: every second derivative by way of v is wrong, and there is no forward-mode rule. Same values
    here to rounding.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the fused kernel; call everything else."""
        return (_composed if func is torch._weight_norm else func)(*args, **(kwargs or {}))


def has_weight_norm(*modules: nn.Module) -> bool:
    """Whether weight normalisation is used in a module: by a parametrisation, or by a hook of the older kind."""
    return any(
        type(part).__name__ == "_WeightNorm"
        or any(type(hook).__name__ == "WeightNorm" for hook in part._forward_pre_hooks.values())
        for module in modules
        for part in module.modules()
    )


def _composed(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`g v / |v|`, with a norm for every index of `dim` (-1: one norm of all)."""
    wide = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
    if dim == -1:
        norm = torch.linalg.vector_norm(wide)
    else:
        rows = wide.movedim(dim, 0).reshape(wide.shape[dim], -1)
        norm = torch.linalg.vector_norm(rows, dim=1).view([-1 if i == dim else 1 for i in range(wide.ndim)])
    out: Tensor = wide * (g.to(wide.dtype) / norm)
    return out.to(v.dtype)
