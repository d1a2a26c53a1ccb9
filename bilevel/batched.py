"""Many independent bilevel problems in one call: tasks, seeds, or settings of hyperparameters side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bilevel.problem import BilevelProblem
from bilevel.tree import Tree, leaves, map_leaves


def batched(problem: BilevelProblem, batch_dim: int | None = 0, randomness: str = "different") -> BilevelProblem:
    """The same problem over trees with one more leading dimension, which numbers independent problems.

    Every loss is mapped over that dimension by `torch.func.vmap`; gradients of the sum are the gradients of each
    problem, inner products are taken per problem, and so every method gives what a loop over the problems would give
    (to rounding), in one set of larger kernels. `outer_loss` and the facts in `stats` have one number per problem.
    Hyperparameters of an inner optimizer may be `(problems,)` tensors.

    Args:
        problem: one problem.
        batch_dim: dimension of every tensor of a batch that numbers the problems; None where all share the batches.
        randomness: of `torch.func.vmap`: `different` or `same` dropout masks across problems.

    Example:
        >>> f = BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
        >>> from bilevel import hypergradient
        >>> w, a = torch.tensor([6.0, 0.0]), torch.tensor([2.0, 0.0])
        >>> hypergradient(batched(f, batch_dim=None), w, a, [None], None).value  # b (w - c) each
        tensor([15., -3.])
    """
    if problem.lead:
        raise ValueError("`problem` is batched already.")

    def mapped(loss: Callable[..., Any]) -> Callable[..., Any]:
        def run(inner: Tree, outer: Tree, batch: Any) -> Any:
            dims = (0, 0, batch_dim if batch is not None else None)
            return torch.func.vmap(loss, in_dims=dims, randomness=randomness)(inner, outer, batch)

        return run

    return BilevelProblem(mapped(problem.inner_loss), mapped(problem.outer_loss), lead=1)


def stack_trees(trees: Sequence[Tree]) -> Tree:
    """One tree whose leaves carry the given trees' leaves along a new first dimension."""
    return map_leaves(lambda *xs: torch.stack(xs), trees[0], *trees[1:])


def unstack_trees(tree: Tree) -> list[Tree]:
    """Inverse of `stack_trees`."""
    count = len(leaves(tree)[0])
    return [map_leaves(lambda x, i=i: x[i], tree) for i in range(count)]
