"""What the penalty methods share: first derivatives of f, and plain descent.

With the value function v(a) = min over w of f(w, a), the bilevel problem is `min F(w, a)` subject to
`f(w, a) - v(a) <= 0`. F2SA, BOME and MESO penalise that gap, and so optimise w and a together without a second
derivative: the hypergradient belongs to inner variables of their own, `Hypergradient.inner`, which `BilevelTrainer`
takes over.
"""

from bilevel.hypergradients.inner_steps import run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.inner_optimizers import OptimizerLike
from bilevel.tree import Tree, as_variables, detach, gradient


def descend(at: Instance, optimizer: OptimizerLike, steps: int) -> Tree:
    """The inner variables after plain steps from the given ones, as constants."""
    point = starting_point(optimizer, *at.constants())
    return detach(run_plain(at, optimizer, point, range(steps)).inner)


def outer_slope(at: Instance, inner: Tree) -> Tree:
    """df/da at constant w."""
    a = as_variables(at.outer)
    return gradient(at.inner_loss(detach(inner), a), a)


def inner_slope(at: Instance, inner: Tree) -> Tree:
    """df/dw at constant a."""
    w = as_variables(inner)
    return gradient(at.inner_loss(w, detach(at.outer)), w)
