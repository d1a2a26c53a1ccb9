"""Implicit differentiation of the fixed point of any update map."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bilevel.hypergradients.base import StatefulMethod, assemble
from bilevel.hypergradients.instance import Instance
from bilevel.linear_solvers import GMRES, LinearSolver, solve
from bilevel.results import Hypergradient, initial_state
from bilevel.tree import Tree, add, leaves, norm, ravel, scale, subtract, unravel, vector_jacobian

UpdateMap = Callable[[Tree, Tree, Any], Tree]
"""`update(inner, outer, batch) -> inner`, differentiable."""


@dataclass(frozen=True)
class FixedPoint(StatefulMethod):
    """`dF/da + (dP/da)' (I - dP/dw)^-T dF/dw` where w = P(w, a).

    P is whatever computes the inner solution: a gradient step with momentum, a proximal or a projected step, an
    equilibrium layer. The inner loss of the problem is not used. The matrix is not symmetric in general, hence GMRES;
    `Neumann(terms=K, step_size=1)` sums K powers of dP/dw, which is K-truncated reverse mode at the fixed point.

    Attributes:
        update: the map P; with several batches their mean is taken.
        solver: solves (I - dP/dw)' v = dF/dw.

    Source: Rajeswaran et al. (2019); Grazzi et al. (ICML 2020), fixed-point form.
    """

    update: UpdateMap
    solver: LinearSolver = field(default_factory=lambda: GMRES(max_iter=50))

    def init(self) -> Any:
        """The state of the solver."""
        return initial_state(self.solver)

    def estimate(self, at: Instance, state: Any) -> Hypergradient:
        """Solve and multiply; see the class.

        Raises:
            ValueError: if the map changes shapes.
        """
        outer_part = at.outer_gradients()
        w, a = at.variables()
        image = self.update(w, a, at.inner_batches[0])
        for batch in at.inner_batches[1:]:
            image = add(image, self.update(w, a, batch))
        image = scale(1 / len(at.inner_batches), image)
        if [x.shape for x in leaves(image)] != [x.shape for x in leaves(w)]:
            raise ValueError("`update(inner, outer, batch)` must return a tree of the structure and shapes of `inner`.")

        def matvec(vector: Tensor) -> Tensor:
            return vector - ravel(vector_jacobian(image, w, unravel(vector, w), retain_graph=True))

        solved = solve(self.solver, matvec, ravel(outer_part.inner), state)
        indirect = vector_jacobian(image, a, unravel(solved.value, w))
        stats = {
            "method": "fixed_point",
            "iterations": solved.iterations,
            "residual_norm": solved.residual_norm,
            "converged": solved.converged,
            "distance": norm(subtract(image, w)).detach(),
        }
        return assemble(outer_part, indirect, stats, state=solved.state)
