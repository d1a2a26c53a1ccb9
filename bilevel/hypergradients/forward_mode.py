"""Hypergradient by forward mode: for few outer variables and any number of steps."""

from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

from bilevel.hypergradients.base import Method, assemble
from bilevel.hypergradients.inner_steps import Point, Start, Stepping, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike, apply_updates, bind, composed_rules
from bilevel.products import push_forward
from bilevel.results import Hypergradient
from bilevel.tree import Tree, leaves, norm, rebuild


@dataclass(frozen=True)
class ForwardUnrolled(Method, Stepping):
    """The same value as `Unrolled`, carrying dw_t/da along instead of going back.

    With w_{t+1} = P(w_t, s_t, a): `Z_{t+1} = dP/d(w, s) Z_t + dP/da`, Z_0 = d(w_0, s_0)/da, and the indirect part is
    `Z_T' dF/dw`. Cost: m + 1 forward-mode steps per inner step for m outer numbers, in one vectorised call; memory of
    one step times m, whatever T is. Right for a few hyperparameters and long unrolls; wrong for many weights.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        start: see `Unrolled`.
        state: see `Unrolled`.
        max_outer: refuse more outer numbers than this.

    Source: Franceschi et al. (2017), forward mode.
    """

    start: Start | None = None
    state: Any = None
    max_outer: int = 256

    def estimate(self, at: Instance) -> Hypergradient:
        """Carry values and tangents through all steps; see the class.

        Raises:
            ValueError: if there are more outer numbers than `max_outer`.
        """
        at.require_one_problem(self)
        inner, outer = at.constants()
        a = leaves(outer)
        count = sum(x.numel() for x in a)
        if count > self.max_outer:
            raise ValueError(
                f"`outer` holds {count} numbers, more than max_outer={self.max_outer}; forward mode carries one "
                "tangent for each. Use RecomputedUnrolled, or raise max_outer."
            )
        along = _basis(a)
        begin = starting_point(self.optimizer, inner, outer, self.start, self.state)
        w, dw = self._first(inner, outer, begin, a, along)
        state = [x.detach() for x in _tensors(begin.state)]
        ds = [x.new_zeros(count, *x.shape) for x in state]
        fixed = begin.state
        for t in range(self.steps):
            step = _Step(at, self.optimizer, fixed, t)
            n = len(w)
            values, tangents = _push(step, [*w, *state, *a], [*dw, *ds, *along])
            # The last two are the inner loss and the gradient norm.
            (w, dw), (state, ds) = (values[:n], tangents[:n]), (values[n:-2], tangents[n:-2])
            fixed = step.state_after
        outer_part = at.outer_gradients(rebuild(inner, w))
        columns = sum(
            (z.reshape(len(z), -1) @ g.reshape(-1)).to(along[0].dtype)
            for z, g in zip(dw, leaves(outer_part.inner), strict=True)
        )
        assert isinstance(columns, Tensor)
        parts = torch.split(columns, [x.numel() for x in a])
        indirect = rebuild(outer, [p.reshape(x.shape).to(x.dtype) for p, x in zip(parts, a, strict=True)])
        stats = {"method": "forward", "steps": self.steps, "tangents": count}
        return assemble(outer_part, indirect, stats | {"inner_loss": values[-2], "inner_gradient_norm": values[-1]})

    def _first(
        self, inner: Tree, outer: Tree, begin: Point, a: list[Tensor], along: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        start = self.start
        if start is None:
            w = [x.detach() for x in leaves(begin.inner)]
            return w, [x.new_zeros(len(along[0]), *x.shape) for x in w]

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            return tuple(x.clone() for x in leaves(start(inner, rebuild(outer, list(values)))))

        return _push(flat, a, along)


class _Step:
    """One optimizer step as a function of tensors alone; the rest of the optimizer's state travels beside it."""

    def __init__(self, at: Instance, optimizer: OptimizerLike, state: Any, step: int) -> None:
        self.at, self.optimizer, self.step = at, optimizer, step
        self.state, self.state_after = state, state

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        inner, outer = self.at.inner, self.at.outer
        n, m = len(leaves(inner)), len(leaves(outer))
        a = rebuild(outer, list(values[len(values) - m :]))
        state = _with_tensors(self.state, list(values[n : len(values) - m]))

        def loss(*w: Tensor) -> Tensor:
            return self.at.inner_loss_at(self.step, rebuild(inner, list(w)), a, second_order=True)

        argnums = tuple(range(n))
        found, value = torch.func.grad_and_value(loss, argnums=argnums)(*values[:n])
        params, grads = rebuild(inner, list(values[:n])), rebuild(inner, list(found))
        with composed_rules():
            updates, after = bind(self.optimizer, a).update(grads, state, params=params, inplace=False)
        self.state_after = optree.tree_map(_placeholder, after)
        new = apply_updates(params, updates)
        return (*leaves(new), *_tensors(after), value, norm(grads))


_NO_RULE = ("Trying to use forward AD with", "we do not yet support aten::", "Batching rule not implemented")
"""What torch says of an operation without a forward-mode rule, or without one for many tangents at once."""


def _push(function: Any, values: list[Tensor], tangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of a function and their derivatives along all tangents at once."""

    def one(*along: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return push_forward(function, values, along)

    dims: Any = (None, 0)
    try:
        # One mask of dropout for all tangents, the one that `Unrolled` draws: they share the values.
        outputs, pushed = torch.func.vmap(one, out_dims=dims, randomness="same")(*tangents)
    except RuntimeError as error:  # NotImplementedError is one
        if any(text in str(error) for text in _NO_RULE):
            raise NotImplementedError(
                "`ForwardUnrolled` met an operation in `inner_loss` that torch has no forward-mode rule for "
                f"({str(error).splitlines()[0]}); use RecomputedUnrolled or Unrolled, which go back."
            ) from error
        raise
    return [x.detach() for x in outputs], [x.detach() for x in pushed]


def _basis(a: list[Tensor]) -> list[Tensor]:
    """One tangent per outer number, `(m, *shape)` for every leaf."""
    sizes = [x.numel() for x in a]
    blocks = torch.split(torch.eye(sum(sizes), device=a[0].device), sizes, dim=1)
    return [block.to(x.dtype).reshape(-1, *x.shape) for block, x in zip(blocks, a, strict=True)]


def _is_variable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _tensors(state: Any) -> list[Tensor]:
    return [x for x in optree.tree_leaves(state) if _is_variable(x)]


class _Placeholder:
    """Marks the place of a tensor of the state, whose value is passed among the other tensors."""


def _placeholder(x: Any) -> Any:
    return _Placeholder() if _is_variable(x) else x


def _with_tensors(state: Any, values: list[Tensor]) -> Any:
    remaining = iter(values)
    return optree.tree_map(lambda x: next(remaining) if isinstance(x, _Placeholder) or _is_variable(x) else x, state)
