"""Hypergradient by the implicit function theorem, with any linear solver."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.attention import composed_attention
from bilevel.hypergradients.base import StatefulMethod, assemble, require_dependence, warn_if_unreliable
from bilevel.hypergradients.instance import Instance
from bilevel.linear_solvers import LinearSolver, MatVec, solve
from bilevel.problem import ComposedLoss
from bilevel.products import InnerCurvature, PredictionCurvature
from bilevel.results import Hypergradient, initial_state
from bilevel.tree import Tree, ravel, scale


@dataclass(frozen=True)
class Implicit(StatefulMethod):
    """`dF/da - (d2f / da dw) H^-1 dF/dw` at the given inner variables, H = d2f/dw2.

    Exact where df/dw = 0 and H is positive definite. The inner loss is the mean over all `inner_batches`, evaluated
    once, so every product uses the same function.

    Cost: one gradient of each loss, one Hessian product per solver iteration and one mixed product; memory of one inner
    graph, whatever the number of steps that led to `inner`.

    Attributes:
        solver: solves H v = dF/dw (any of `bilevel.linear_solvers`; `WarmStart` carries v from call to call).
        warn: warn where the system was not solved or negative curvature was met; `stats` holds both in any case.
        curvature: `hessian`, or `gauss_newton` for the generalised Gauss-Newton matrix in its place, which is positive
            semidefinite wherever the loss is convex in the predictions; the inner loss must be a `ComposedLoss`.

    Source: Bengio (2000); Pedregosa (2016), equation 3.
    """

    solver: LinearSolver
    warn: bool = True
    curvature: str = "hessian"

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ValueError(f"`curvature` must be 'hessian' or 'gauss_newton', got {self.curvature!r}.")

    def init(self) -> Any:
        """The state of the solver."""
        return initial_state(self.solver)

    def estimate(self, at: Instance, state: Any) -> Hypergradient:
        """Solve and multiply; see the class.

        Raises:
            ValueError: if the inner loss does not depend on the inner variables, or shows no predictions where
                `curvature` needs them.
        """
        outer_part = at.outer_gradients()
        w, a = at.variables()
        loss = at.inner_loss(w, a, second_order=True)
        require_dependence(loss)
        curvature = InnerCurvature(loss, w, a, at.problem.lead)
        matvec: MatVec = curvature.hessian_product
        if self.curvature == "gauss_newton":
            matvec = _prediction_curvature(at, w, a).product
        solved = solve(self.solver, matvec, ravel(outer_part.inner, at.problem.lead), state)
        indirect = scale(-1.0, curvature.mixed_product(solved.value))
        stats = {
            "method": "implicit",
            "iterations": solved.iterations,
            "products": curvature.products,
            "residual_norm": solved.residual_norm,
            "converged": solved.converged,
            "minimum_curvature": solved.minimum_curvature,
            "inner_loss": loss.detach(),
            "inner_gradient_norm": torch.linalg.vector_norm(curvature.gradient, dim=-1),
        }
        if self.warn:
            warn_if_unreliable(stats)
        return assemble(outer_part, indirect, stats, state=solved.state)


def _prediction_curvature(at: Instance, inner: Tree, outer: Tree) -> PredictionCurvature:
    composed = at.problem.inner_loss
    if not isinstance(composed, ComposedLoss) or at.problem.lead:
        raise ValueError(
            "curvature='gauss_newton' needs an inner loss that shows its predictions: "
            "BilevelProblem(ComposedLoss(predict, loss), outer_loss), one problem at a time."
        )
    parts: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
    for batch in at.inner_batches:
        with composed_attention():
            z = composed.predict(inner, outer, batch)
        variable = z.detach().requires_grad_(True)
        parts.append((z, (variable, composed.loss(variable, outer, batch))))
    return PredictionCurvature(parts, inner)
