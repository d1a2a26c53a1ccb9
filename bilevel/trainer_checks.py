"""What a trainer refuses when it is made, and which layers it leaves in eval mode."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

DISTRIBUTED = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel"}


def check_not_distributed(module: nn.Module, name: str) -> None:
    """Raise for a module that spreads its work over processes or devices.

    Raises:
        ValueError: naming the wrapper. It averages the gradients of `backward` alone, so hypergradients would differ
            from rank to rank, and with them the outer variables.
    """
    for m in module.modules():
        wrapper = next((kind.__name__ for kind in type(m).__mro__ if kind.__name__ in DISTRIBUTED), None)
        if wrapper is not None:
            raise ValueError(
                f"`{name}` is wrapped in {wrapper}, which averages the gradients of inner steps only: every rank would "
                "follow a hypergradient of its own. Pass the bare module and train in one process."
            )


def check_modules(inner: nn.Module, outer: nn.Module) -> None:
    """Raise unless `inner` has something to train and neither module is spread over processes or devices.

    Raises:
        ValueError: naming the module.
    """
    if not any(p.requires_grad for p in inner.parameters()):
        raise ValueError("`inner` has no trainable parameters.")
    check_not_distributed(inner, "inner")
    check_not_distributed(outer, "outer")


def named_among(module: nn.Module, wanted: Iterable[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a module that are among the wanted ones, with their names."""
    chosen = set(wanted)
    return [(name, p) for name, p in module.named_parameters() if p in chosen]


def check_inner_optimizer(optimizer: torch.optim.Optimizer, inner: nn.Module) -> None:
    """Raise unless an optimizer moves the trainable parameters of `inner`, all of them and nothing else.

    Raises:
        ValueError: naming the parameters that it lacks, or how many are not of `inner`.
    """
    wanted = {p: name for name, p in inner.named_parameters()}
    _check_covers("inner_optimizer", optimizer, wanted, "inner", [p for p in wanted if p.requires_grad])


def check_outer_optimizer(
    optimizer: torch.optim.Optimizer, outer: nn.Module, shared: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Raise unless an optimizer moves the trainable parameters of `outer` and the shared ones, and nothing else.

    Raises:
        ValueError: naming the parameters that it lacks, or how many are neither.
    """
    wanted = {p: name for name, p in outer.named_parameters()} | {p: name for name, p in shared}
    _check_covers("outer_optimizer", optimizer, wanted, "outer", [p for p in wanted if p.requires_grad])


def _check_covers(
    argument: str,
    optimizer: torch.optim.Optimizer,
    names: dict[nn.Parameter, str],
    module: str,
    needed: Iterable[nn.Parameter],
) -> None:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = [tuple(p.shape) for p in held if p not in names]
    if strangers:
        allowed = f"`{module}`" if module == "inner" else "`outer` or `shared`"
        raise ValueError(
            f"`{argument}` holds {len(strangers)} of {len(held)} parameters that are not in {allowed} (the first of "
            f"shape {strangers[0]}); make it from the parameters of the very modules that the trainer is given."
        )
    missing = [names[p] for p in needed if p not in set(held)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"`{argument}` lacks the trainable parameters {missing[:3]}{more} of `{module}`; add them, or freeze them "
            "with requires_grad_(False)."
        )


def frozen_in_eval(module: nn.Module) -> list[nn.Module]:
    """The submodules in eval mode inside a module in training mode: those whose statistics are frozen."""
    return [m for m in module.modules() if not m.training] if module.training else []


def train_mode(module: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Put a module in training mode, except for the given submodules, which stay in eval mode."""
    module.train()
    for m in frozen:
        m.training = False
