"""The differentiable twin of a running torch optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel.inner_optimizers import AdamState, InnerOptimizer, SGDState, adam, adamw, sgd
from bilevel.tree import Tree, map_leaves

WITHOUT_INFLUENCE = {"params", "foreach", "fused", "capturable", "differentiable", "initial_lr"}


def from_torch(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> tuple[InnerOptimizer, Any]:
    """The differentiable twin of a torch optimizer, with the state it has reached.

    For a look-ahead that continues training instead of starting afresh:
    `rule, state = from_torch(optimizer, dict(model.named_parameters())); Unrolled(rule, steps, state=state)`.

    Every parameter group keeps its own settings, and every parameter its own count of steps. A torch optimizer skips a
    parameter whose `grad` is None: no weight decay, no momentum. The twin sees zeros for a parameter that a loss does
    not use, so it skips those that the last backward pass left without a gradient, or, where there are no gradients at
    all (after `zero_grad`), those without a state while others have one.

    Args:
        optimizer: a `torch.optim.SGD`, `Adam` or `AdamW`.
        params: some or all of the optimizer's parameters, by the names of the inner tree.

    Raises:
        ValueError: for another optimizer, options without a twin (`amsgrad`, `dampening`), or a parameter that is not
            the optimizer's.
    """
    if not isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)):
        raise ValueError(f"`optimizer` must be an SGD, Adam or AdamW, got {type(optimizer).__name__}.")
    settings = _settings(optimizer)
    group_of = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    missing = [name for name, p in params.items() if p not in group_of]
    if missing:
        raise ValueError(f"`params` holds {missing[:3]}, which the optimizer does not update.")
    skipped = _skipped(optimizer, params)
    members: dict[tuple[int, int], list[str]] = {}
    for name, p in params.items():
        first_like_it = settings.index(settings[group_of[p]])
        key = (-1, 0) if name in skipped else (first_like_it, _count(optimizer, p))
        members.setdefault(key, []).append(name)
    pieces = [
        _IDLE if i < 0 else _twin(optimizer, settings[i], {name: params[name] for name in names}, count)
        for (i, count), names in members.items()
    ]
    if len(pieces) == 1:
        return pieces[0]
    rule = _side_by_side(list(members.values()), [rule for rule, _ in pieces])
    return rule, tuple(state for _, state in pieces)


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    groups = [{k: v for k, v in g.items() if k not in WITHOUT_INFLUENCE} for g in optimizer.param_groups]
    for group in groups:
        for name in ("amsgrad", "dampening"):
            if group.get(name):
                raise ValueError(f"`{name}={group[name]}` has no differentiable twin; switch it off.")
    return groups


def _skipped(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> set[str]:
    """The parameters that the optimizer would leave alone."""
    touched = {name for name, p in params.items() if p.grad is not None}
    touched = touched or {name for name, p in params.items() if _state(optimizer, p)}
    return params.keys() - touched if touched else set()


def _state(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Any]:
    return {k: v for k, v in optimizer.state.get(p, {}).items() if v is not None}


def _count(optimizer: torch.optim.Optimizer, p: Tensor) -> int:
    """Steps that Adam has taken for a parameter; SGD's update does not depend on it."""
    return int(_state(optimizer, p).get("step", 0))


def _twin(
    optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], params: Mapping[str, Tensor], count: int
) -> tuple[InnerOptimizer, Any]:
    """Rule and state for parameters of one group that have taken the same number of steps."""
    states = {name: _state(optimizer, p) for name, p in params.items()}
    common: dict[str, Any] = {k: settings[k] for k in ("lr", "weight_decay", "maximize")}
    if isinstance(optimizer, torch.optim.SGD):
        rule = sgd(momentum=settings["momentum"], nesterov=settings["nesterov"], **common)
        if not any(states.values()):
            return rule, SGDState(None)
        # A buffer that is missing and one of zeros are the same: the first step sets b to momentum * 0 + g.
        buffers = {k: s.get("momentum_buffer", torch.zeros_like(params[k])) for k, s in states.items()}
        return rule, SGDState({k: b.detach().clone() for k, b in buffers.items()})
    decoupled = isinstance(optimizer, torch.optim.AdamW) or settings.get("decoupled_weight_decay", False)
    rule = (adamw if decoupled else adam)(betas=settings["betas"], eps=settings["eps"], **common)
    fresh: AdamState = rule.init({k: p.detach() for k, p in params.items()})
    if not count:
        return rule, fresh
    mean = {k: s["exp_avg"].detach().to(fresh.mean[k], copy=True) for k, s in states.items()}
    square = {k: s["exp_avg_sq"].detach().to(fresh.mean[k], copy=True) for k, s in states.items()}
    return rule, AdamState(mean, square, count)


def _side_by_side(members: Sequence[Sequence[str]], rules: Sequence[InnerOptimizer]) -> InnerOptimizer:
    """One rule for a dict of parameters, of which each belongs to one of several rules."""

    def init(params: Tree) -> tuple[Any, ...]:
        return tuple(rule.init({k: params[k] for k in names}) for names, rule in zip(members, rules, strict=True))

    def update(grads: Tree, state: Any, *, params: Tree, inplace: bool = False) -> tuple[Tree, Any]:
        updates, states = {}, []
        for names, rule, part in zip(members, rules, state, strict=True):
            own = {k: grads[k] for k in names}, {k: params[k] for k in names}
            found, after = rule.update(own[0], part, params=own[1], inplace=inplace)
            updates.update(found)
            states.append(after)
        return {k: updates[k] for k in params}, tuple(states)

    return InnerOptimizer(init, update)


def _stay(grads: Tree, state: Any, *, params: Tree, inplace: bool = False) -> tuple[Tree, Any]:
    return map_leaves(torch.zeros_like, params), state


_IDLE = (InnerOptimizer(lambda params: (), _stay), ())
