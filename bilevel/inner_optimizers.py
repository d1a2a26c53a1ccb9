"""Differentiable inner optimizers as (init, update) pairs.

The protocol is torchopt's: `init(params) -> state` and `update(grads, state, params=..., inplace=False) -> (updates,
state)`, after which `params + updates` are the new parameters. A torchopt transformation is therefore accepted as it
stands. The rules here exist because differentiating through the common implementations of Adam is not exact: a square
root at a zero second moment gives NaN, a guard inside the root changes the function, and bias corrections computed in
float32 lose digits of float64 parameters. Here every update is an out-of-place function of its arguments, in the
dtype of the parameters, and hyperparameters may be tensors that are themselves differentiated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bilevel.tree import Tree, leaves, map_leaves, rebuild, zeros_like

Scalar = float | Tensor


class Transformation(Protocol):
    """What an inner optimizer must offer; torchopt's `GradientTransformation` satisfies it."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(params) -> state`."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """`update(grads, state, *, params, inplace) -> (updates, state)`."""
        ...


class InnerOptimizer(NamedTuple):
    """A differentiable update rule.

    Attributes:
        init: `init(params) -> state`.
        update: `update(grads, state, *, params, inplace=False) -> (updates, state)`, differentiable in every argument.
    """

    init: Callable[[Tree], Any]
    update: Callable[..., tuple[Tree, Any]]


class SGDState(NamedTuple):
    """Momentum buffers (None before the first step or without momentum)."""

    momentum: Tree | None


class AdamState(NamedTuple):
    """First and second moments and the number of steps taken."""

    mean: Tree
    square: Tree
    step: int


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Params + updates."""
    return map_leaves(torch.add, params, updates)


def sgd(
    lr: Scalar, momentum: Scalar = 0.0, weight_decay: Scalar = 0.0, nesterov: bool = False, maximize: bool = False
) -> InnerOptimizer:
    """Stochastic gradient descent, the same map as `torch.optim.SGD`.

    With g = +-grad + weight_decay * w: b <- momentum * b + g (b <- g at the first step), w <- w - lr * b; with
    `nesterov`, w <- w - lr * (g + momentum * b).

    Args:
        lr: step size; a tensor may be differentiated.
        momentum: factor on the buffer in [0, 1).
        weight_decay: L2 factor.
        nesterov: use Nesterov's form.
        maximize: ascend instead of descend.
    """
    use_momentum = isinstance(momentum, Tensor) or momentum != 0.0

    def init(params: Tree) -> SGDState:
        return SGDState(None)

    def update(grads: Tree, state: SGDState, *, params: Tree, inplace: bool = False) -> tuple[Tree, SGDState]:
        g = _effective_gradient(grads, params, weight_decay, maximize)
        if not use_momentum:
            return map_leaves(lambda x: -lr * x, g), state
        buffer = g if state.momentum is None else map_leaves(lambda b, x: momentum * b + x, state.momentum, g)
        step = map_leaves(lambda x, b: x + momentum * b, g, buffer) if nesterov else buffer
        return map_leaves(lambda x: -lr * x, step), SGDState(buffer)

    return InnerOptimizer(init, update)


def adam(
    lr: Scalar,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Scalar = 0.0,
    maximize: bool = False,
) -> InnerOptimizer:
    """Adam, the same map as `torch.optim.Adam` (L2 weight decay inside the gradient), with an exact derivative.

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2,
    w <- w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    At v = 0, where every gradient so far was zero, the update is 0 and its derivative with respect to v is taken as 0
    (the limit along v = (1 - b2) g^2, g -> 0, since m vanishes with g); elsewhere nothing is added under the root.

    Source: Kingma and Ba (2015), algorithm 1.
    """
    return _adam(lr, betas, eps, weight_decay, maximize, decoupled=False)


def adamw(
    lr: Scalar,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Scalar = 1e-2,
    maximize: bool = False,
) -> InnerOptimizer:
    """AdamW, the same map as `torch.optim.AdamW`: w <- w - lr * weight_decay * w, then Adam without L2.

    Source: Loshchilov and Hutter (2019), algorithm 2.
    """
    return _adam(lr, betas, eps, weight_decay, maximize, decoupled=True)


def _adam(
    lr: Scalar, betas: tuple[Scalar, Scalar], eps: float, weight_decay: Scalar, maximize: bool, decoupled: bool
) -> InnerOptimizer:
    b1, b2 = betas

    def init(params: Tree) -> AdamState:
        return AdamState(zeros_like(params), zeros_like(params), 0)

    def update(grads: Tree, state: AdamState, *, params: Tree, inplace: bool = False) -> tuple[Tree, AdamState]:
        g = _effective_gradient(grads, params, 0.0 if decoupled else weight_decay, maximize)
        count = state.step + 1
        mean = map_leaves(lambda m, x: b1 * m + (1 - b1) * x, state.mean, g)
        square = map_leaves(lambda v, x: b2 * v + (1 - b2) * x * x, state.square, g)
        # Python floats (or the caller's tensors) keep the corrections in double precision.
        mean_correction, square_correction = 1 - b1**count, (1 - b2**count) ** 0.5

        def step(m: Tensor, v: Tensor, w: Tensor) -> Tensor:
            out = -(lr / mean_correction) * m / (_safe_sqrt(v) / square_correction + eps)
            return out - lr * weight_decay * w if decoupled else out

        steps = [step(m, v, w) for m, v, w in zip(leaves(mean), leaves(square), leaves(params), strict=True)]
        return rebuild(params, steps), AdamState(mean, square, count)

    return InnerOptimizer(init, update)


def _safe_sqrt(v: Tensor) -> Tensor:
    """sqrt(v), with derivative 0 instead of infinity at v = 0."""
    zero = v == 0
    return torch.where(zero, torch.zeros_like(v), torch.where(zero, torch.ones_like(v), v).sqrt())


def _effective_gradient(grads: Tree, params: Tree, weight_decay: Scalar, maximize: bool) -> Tree:
    sign = -1.0 if maximize else 1.0
    if isinstance(weight_decay, Tensor) or weight_decay != 0.0:
        return map_leaves(lambda g, w: sign * g + weight_decay * w, grads, params)
    return map_leaves(lambda g: sign * g, grads) if maximize else grads
