"""Records that solvers and hypergradient methods return: outcomes are data, not exceptions."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def initial_state(carrying: object) -> Any:
    """What a method or a solver carries to its first call: that of its `init()`, or None if it carries nothing."""
    init: Any = getattr(carrying, "init", None)
    return None if init is None else init()


@dataclass(frozen=True)
class SolveResult:
    """Outcome of solving H v = b.

    Attributes:
        value: `(n,)` the solution v.
        iterations: products with H that were used.
        residual_norm: ||H v - b||, as a 0-d tensor on the device of `value`.
        converged: whether ||H v - b|| <= tolerance was reached, as a 0-d bool tensor.
        minimum_curvature: smallest p'Hp / p'p seen along a direction p, as a 0-d tensor; negative means that H is not
            positive definite. NaN where the method sees no such direction.
        state: what a solver with `init` carries to its next call; None for the others.
    """

    value: Tensor
    iterations: int
    residual_norm: Tensor
    converged: Tensor
    minimum_curvature: Tensor
    state: Any = None


@dataclass(frozen=True)
class Hypergradient:
    """The derivative of F(w*(a), a) with respect to the outer variables a.

    `value = direct + indirect`, with `direct = dF/da` at fixed w and `indirect = (dw*/da)' dF/dw`, as the method
    estimates it.

    Attributes:
        value: tree like the outer variables.
        direct: tree like the outer variables.
        indirect: tree like the outer variables.
        inner_gradient: tree like the inner variables, dF/dw where the outer loss was evaluated.
        outer_loss: the value F as a 0-d tensor.
        stats: facts about the computation (steps, products, residual norm, curvature), by name.
        inner: the inner variables that a penalty method has moved to, and at which its value belongs; None for methods
            that leave the inner variables alone.
        state: what a method with `init` carries to its next call, as plain data; None for the others.
    """

    value: Any
    direct: Any
    indirect: Any
    inner_gradient: Any
    outer_loss: Tensor
    stats: dict[str, Any] = field(default_factory=dict)
    inner: Any = None
    state: Any = None
