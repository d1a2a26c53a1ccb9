"""Differentiable inner optimizers as (init, update) pairs.

The protocol is torchopt's: `init(params) -> state` and `update(grads, state, params=..., inplace=False) -> (updates,
state)`, after which `params + updates` are the new parameters. A torchopt transformation is therefore accepted
unchanged. The rules here exist because differentiating through the common implementations of Adam is not exact: a
square root at a zero second moment gives NaN, a guard inside the root changes the function, bias corrections computed
in float32 lose digits of float64 parameters, and the adjoint of m / sqrt(v) cancels badly in float32. Here every update
is an out-of-place function of its arguments, Adam's algebra runs in float64 whatever the dtype of the parameters, and
hyperparameters may be tensors that are themselves differentiated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bilevel import adam_step
from bilevel.adam_step import AdamNumbers, AdamStep
from bilevel.tree import Tree, leaves, map_leaves, rebuild, zeros_like

Scalar = float | Tensor

OptimizerLike = Any
"""A `Transformation`, or a function `outer -> Transformation` for hyperparameters that are outer variables."""


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


def fit(scalar: Scalar, x: Tensor) -> Scalar:
    """A hyperparameter in the shape in which it multiplies `x`; a vector holds one value for each problem."""
    if isinstance(scalar, Tensor) and 0 < scalar.ndim < x.ndim:
        return scalar.reshape(scalar.shape + (1,) * (x.ndim - scalar.ndim))
    return scalar


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """The parameters after a step, params + updates."""
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
            return map_leaves(lambda x: -fit(lr, x) * x, g), state
        buffer = g if state.momentum is None else map_leaves(lambda b, x: fit(momentum, x) * b + x, state.momentum, g)
        step = map_leaves(lambda x, b: x + fit(momentum, x) * b, g, buffer) if nesterov else buffer
        return map_leaves(lambda x: -fit(lr, x) * x, step), SGDState(buffer)

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
    Moments and update are computed in float64 where the device has it, because in float32 the adjoint of m / sqrt(v)
    cancels; for large tensors, with hyperparameters that are numbers, block by block (`bilevel.adam_step`), so that
    only the moments themselves are held in float64.

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


_composed: ContextVar[bool] = ContextVar("composed", default=False)


@contextmanager
def composed_rules() -> Iterator[None]:
    """Inside, rules are composed of torch's operations, which functional transforms such as forward mode can enter."""
    token = _composed.set(True)
    try:
        yield
    finally:
        _composed.reset(token)


def _adam(
    lr: Scalar, betas: tuple[Scalar, Scalar], eps: float, weight_decay: Scalar, maximize: bool, decoupled: bool
) -> InnerOptimizer:
    b1, b2 = betas
    lean = not any(isinstance(x, Tensor) for x in (lr, b1, b2, eps, weight_decay))

    def scalars(count: int) -> tuple[Any, Any]:
        # Python floats (or the caller's tensors) keep the corrections in double precision. Both go into the scalars:
        # (m / c1) / (sqrt(v) / c2 + eps) = (c2 / c1) m / (sqrt(v) + c2 eps) saves two passes over the moments.
        mean_correction, square_correction = 1 - b1**count, (1 - b2**count) ** 0.5
        return lr * square_correction / mean_correction, eps * square_correction

    def init(params: Tree) -> AdamState:
        moments = zeros_like(map_leaves(_precise, params))
        return AdamState(moments, zeros_like(moments), 0)

    def update(grads: Tree, state: AdamState, *, params: Tree, inplace: bool = False) -> tuple[Tree, AdamState]:
        decays = isinstance(weight_decay, Tensor) or weight_decay != 0.0
        count = state.step + 1
        if lean and not _composed.get() and max(x.numel() for x in leaves(params)) >= adam_step.LEAST:
            decay = float(weight_decay)
            numbers = AdamNumbers(
                b1, b2, *scalars(count), -1.0 if maximize else 1.0, *((0.0, lr * decay) if decoupled else (decay, 0.0))
            )
            columns = zip(*(leaves(tree) for tree in (grads, params, state.mean, state.square)), strict=True)
            stepped = list(zip(*(AdamStep.apply(*column, numbers) for column in columns), strict=True))
            steps, mean, square = (rebuild(params, column) for column in stepped)
            return steps, AdamState(mean, square, count)
        w = map_leaves(_precise, params) if decays else params
        g = _effective_gradient(map_leaves(_precise, grads), w, 0.0 if decoupled else weight_decay, maximize)
        mean = map_leaves(lambda m, x: _blend(m, x, b1), state.mean, g)
        square = map_leaves(lambda v, x: _blend_square(v, x, b2), state.square, g)
        rate, floor = scalars(count)

        def step(m: Tensor, v: Tensor, w: Tensor) -> Tensor:
            out = m / (_safe_sqrt(v) + fit(floor, v)) * -fit(rate, m)
            return out - fit(lr * weight_decay, w) * w if decoupled and decays else out

        columns = zip(leaves(mean), leaves(square), leaves(w), leaves(params), strict=True)
        steps = [step(m, v, w).to(original.dtype) for m, v, w, original in columns]
        return rebuild(params, steps), AdamState(mean, square, count)

    return InnerOptimizer(init, update)


def _blend(m: Tensor, x: Tensor, b: Scalar) -> Tensor:
    """`b m + (1 - b) x`."""
    return fit(b, x) * m + (1 - fit(b, x)) * x if isinstance(b, Tensor) else torch.lerp(m, x, 1 - b)


def _blend_square(v: Tensor, x: Tensor, b: Scalar) -> Tensor:
    """`b v + (1 - b) x^2`."""
    if isinstance(b, Tensor):
        return fit(b, x) * v + (1 - fit(b, x)) * x * x
    return torch.addcmul(b * v, x, x, value=1 - b)


def _safe_sqrt(v: Tensor) -> Tensor:
    """`sqrt(v)`, with derivative 0 instead of infinity at v = 0.

    There it returns the root of the smallest normal number (1e-154 in float64), which vanishes beside any epsilon.
    """
    return v.clamp(min=torch.finfo(v.dtype).tiny).sqrt()


def _precise(x: Tensor) -> Tensor:
    """The same values in float64, or as they are on a device without it."""
    return x if x.device.type == "mps" else x.double()


def _effective_gradient(grads: Tree, params: Tree, weight_decay: Scalar, maximize: bool) -> Tree:
    sign = -1.0 if maximize else 1.0
    if isinstance(weight_decay, Tensor) or weight_decay != 0.0:
        return map_leaves(lambda g, w: sign * g + fit(weight_decay, w) * w, grads, params)
    return map_leaves(lambda g: sign * g, grads) if maximize else grads


def bind(optimizer: OptimizerLike, outer: Tree) -> Transformation:
    """The update rule at the given outer variables; a rule that does not depend on them is itself."""
    rule: Transformation = optimizer if hasattr(optimizer, "init") else optimizer(outer)
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        raise TypeError(f"`optimizer(outer)` must return an (init, update) pair, got {type(rule).__name__}.")
    return rule
