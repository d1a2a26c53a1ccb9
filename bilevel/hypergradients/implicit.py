"""Hypergradient by the implicit function theorem, with any linear solver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bilevel.hypergradients.base import assemble, checked_batches, outer_gradients, warn_if_unreliable
from bilevel.linear_solvers import LinearSolver
from bilevel.problem import BilevelProblem, mean_inner_loss
from bilevel.products import InnerCurvature
from bilevel.results import Hypergradient
from bilevel.tree import Tree, as_variables, ravel, scale


@dataclass(frozen=True)
class Implicit:
    """`dF/da - (d2f / da dw) H^-1 dF/dw` at the given inner variables, H = d2f/dw2.

    Exact where df/dw = 0 and H is positive definite. The inner loss is the mean over all `inner_batches`, evaluated
    once, so every product uses the same function.

    Cost: one gradient of each loss, one Hessian product per solver iteration and one mixed product; memory of one inner
    graph, whatever the number of steps that led to `inner`.

    Attributes:
        solver: solves H v = dF/dw (`ConjugateGradient`, `Neumann`, `Dense`).
        warn: warn where the system was not solved or negative curvature was met; both stand in `stats` in any case.

    Source: Bengio (2000); Pedregosa (2016), equation 3.
    """

    solver: LinearSolver
    warn: bool = True

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Solve and multiply; see the class."""
        batches = checked_batches(inner, outer, inner_batches)
        outer_part = outer_gradients(problem, inner, outer, outer_batch)
        w, a = as_variables(inner), as_variables(outer)
        loss = mean_inner_loss(problem, w, a, batches)
        if not loss.requires_grad:
            raise ValueError("`inner_loss` does not depend on the inner variables: is something detached in it?")
        curvature = InnerCurvature(loss, w, a)
        solved = self.solver(curvature.hessian_product, ravel(outer_part.inner))
        indirect = scale(-1.0, curvature.mixed_product(solved.value))
        stats = {
            "method": "implicit",
            "iterations": solved.iterations,
            "products": curvature.products,
            "residual_norm": solved.residual_norm,
            "converged": solved.converged,
            "minimum_curvature": solved.minimum_curvature,
            "inner_loss": loss.detach(),
            "inner_gradient_norm": curvature.gradient.norm(),
        }
        if self.warn:
            warn_if_unreliable(stats)
        return assemble(outer_part, indirect, stats)
