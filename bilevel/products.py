"""Hessian-, Gauss-Newton- and mixed-derivative-vector products of one inner loss.

With g = df/dw at (w, a), `H v = d<g, v>/dw` and `(d2f / da dw) v = d<g, v>/da` (Pearlmutter, 1994): one backward pass
through the graph of g (reverse over reverse), or one backward pass through the directional derivative <g, v> computed
by forward mode (reverse over forward), which needs no graph of g. For f = l(z(w)), the generalised Gauss-Newton product
`G v = J' (d2l/dz2) J v` with J = dz/dw leaves out the curvature of z: it is positive semidefinite for convex l, and
equals H where z is linear in w or l is flat (Schraudolph, 2002).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel.forward_rules import DifferentiableNormalisation
from bilevel.tree import (
    SPARSE_GRADIENT,
    Layout,
    Tree,
    detach,
    differentiate,
    gradient,
    leaves,
    ravel,
    rebuild,
    unravel,
    vector_jacobian,
)

InnerLoss = Callable[[Tree, Tree], Tensor]
"""`f(inner, outer)` at a fixed batch."""


class InnerCurvature:
    """Second derivatives of an inner loss at a point, on flat vectors.

    The loss is evaluated once, so every product sees the same mini-batches and the same dropout masks.

    Args:
        loss: 0-d tensor f(w, a) with its graph; with `lead`, one number per problem.
        inner: the variables w it was evaluated at (they require gradients).
        outer: the variables a it was evaluated at (they require gradients).
        lead: leading dimensions that number independent problems; vectors are then `(*lead dimensions, n)`.
    """

    def __init__(self, loss: Tensor, inner: Tree, outer: Tree, lead: int = 0) -> None:
        self._inner, self._outer = inner, outer
        self._gradient = gradient(loss, inner, create_graph=True)
        self._layout = Layout(inner, lead)
        slopes = leaves(self._gradient)
        self.gradient = self._layout.join([g.detach() for g in slopes])
        self._live = [i for i, g in enumerate(slopes) if g.requires_grad]  # the others are constant
        self._slopes = [slopes[i] for i in self._live]
        self.products = 0

    def hessian_product(self, vector: Tensor) -> Tensor:
        """`H v`, `(n,) -> (n,)`, with H = d2f/dw2."""
        self.products += 1
        if not self._live:
            return torch.zeros_like(vector)
        parts = self._layout.split(vector)
        cotangents = [parts[i] for i in self._live]
        return self._layout.join(differentiate(self._slopes, self._layout.leaves, cotangents, retain_graph=True))

    def mixed_product(self, vector: Tensor) -> Tree:
        """`(d2f / da dw) v`, a tree like the outer variables."""
        self.products += 1
        return vector_jacobian(self._gradient, self._outer, unravel(vector, self._inner), retain_graph=True)


class PredictionCurvature:
    """Generalised Gauss-Newton products of a mean of losses `l(z(w))`, on flat vectors.

    Args:
        parts: for every batch, predictions z with their graph and the loss l computed from `z.detach()` as a variable:
            pairs `(z, (variable, l))`.
        inner: the variables w (they require gradients).
    """

    def __init__(self, parts: Sequence[tuple[Tensor, tuple[Tensor, Tensor]]], inner: Tree) -> None:
        self._inner = inner
        self._parts = []
        for z, (variable, loss) in parts:
            slope = torch.autograd.grad(loss, variable, create_graph=True)[0]
            # J v by differentiating J'u, which is linear in u: reverse mode twice, and no forward-mode rule needed.
            u = torch.zeros_like(z).requires_grad_(True)
            pulled = torch.autograd.grad(z, leaves(inner), u, create_graph=True, allow_unused=True, retain_graph=True)
            self._parts.append((z, variable, slope, u, pulled))

    def product(self, vector: Tensor) -> Tensor:
        """`G v`, `(n,) -> (n,)`."""
        parts = leaves(unravel(vector, self._inner))
        total = torch.zeros_like(vector)
        for z, variable, slope, u, pulled in self._parts:
            pairs = [(p, v) for p, v in zip(pulled, parts, strict=True) if p is not None]
            ys, vs = zip(*pairs, strict=True)
            forward = torch.autograd.grad(ys, u, vs, retain_graph=True)[0]
            bent = vector_jacobian([slope], [variable], [forward], retain_graph=True)
            back = vector_jacobian([z], self._inner, bent, retain_graph=True)
            total = total + ravel(back)
        return total / len(self._parts)


def reverse_over_reverse(
    loss: InnerLoss, inner: Tree, outer: Tree, vector: Tree, *, hessian: bool = True
) -> tuple[Tree | None, Tree]:
    """`(H v, (d2f / da dw) v)` from a graph of the gradient; `inner` and `outer` require gradients.

    Without `hessian`, the first is None and the second costs only the part of the graph that leads to `outer`.
    """
    slope = gradient(loss(inner, outer), inner, create_graph=True)
    if not hessian:
        return None, vector_jacobian(slope, outer, vector)
    products = vector_jacobian(slope, (inner, outer), vector)
    return products[0], products[1]


def reverse_over_forward(
    loss: InnerLoss, inner: Tree, outer: Tree, vector: Tree, *, hessian: bool = True
) -> tuple[Tree | None, Tree]:
    """The same products by one backward pass through a forward-mode directional derivative.

    Without `hessian` the inner variables are constants of that pass: where the outer variables enter late, as weights
    of losses do, hardly anything is left to go back through, and nothing of the network's inside is kept.
    """
    columns, tangents = leaves(inner if hessian else detach(inner)), leaves(vector)

    def flat(*values: Tensor) -> Any:
        return loss(rebuild(inner, list(values)), outer).sum()

    _, directional = directional_derivative(flat, columns, tangents)
    if not hessian:
        return None, gradient(directional, outer)
    products = gradient(directional, (inner, outer))
    return products[0], products[1]


def directional_derivative(
    function: Callable[..., Any], values: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Any, Any]:
    """`f(x)` and `J v`: outputs of a function and their derivatives along tangents, by forward mode.

    Both may be differentiated again: normalisation layers in training mode, for which torch's own forward rules give a
    wrong derivative of a derivative, are composed of operations that give the right one (`bilevel.forward_rules`).

    Args:
        function: `f(*values) -> tensor or tree of tensors`.
        values: x, one tensor per argument.
        tangents: v, of the shapes and dtypes of `values`.

    Raises:
        NotImplementedError, RuntimeError: from torch, for an operation without a forward-mode rule.
    """
    with DifferentiableNormalisation():
        return push_forward(function, values, tangents)


def push_forward(function: Callable[..., Any], values: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Any, Any]:
    """The same by torch's rules as they are: right where nobody differentiates the result again."""
    with warnings.catch_warnings():
        # Loading torch's forward rules warns of a deprecated call inside torch.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        try:
            outputs = torch.func.jvp(function, tuple(values), tuple(tangents))
        except RuntimeError as error:  # NotImplementedError is one
            if "_sparse_coo" in str(error):
                raise TypeError(SPARSE_GRADIENT) from error
            if type(error).__module__.startswith("torch._dynamo"):
                raise RuntimeError(
                    "Forward mode cannot enter a loss that torch.compile has compiled; pass it uncompiled."
                ) from error
            raise
    return outputs[0], outputs[1]
