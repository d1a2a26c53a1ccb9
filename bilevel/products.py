"""Hessian- and mixed-derivative-vector products of one inner loss, from one kept graph.

With g = df/dw at (w, a), both products are one backward pass through the graph of g (Pearlmutter, 1994):
`H v = d<g, v>/dw` and `(d2f / da dw) v = d<g, v>/da`.
"""

from torch import Tensor

from bilevel.tree import Tree, gradient, ravel, unravel, vector_jacobian


class InnerCurvature:
    """Second derivatives of an inner loss at a point, on flat vectors.

    The loss is evaluated once, so every product sees the same mini-batches and the same dropout masks.

    Args:
        loss: 0-d tensor f(w, a) with its graph.
        inner: the variables w it was evaluated at (they require gradients).
        outer: the variables a it was evaluated at (they require gradients).
    """

    def __init__(self, loss: Tensor, inner: Tree, outer: Tree) -> None:
        self._inner, self._outer = inner, outer
        self._gradient = gradient(loss, inner, create_graph=True)
        self.gradient = ravel(self._gradient).detach()
        self.products = 0

    def hessian_product(self, vector: Tensor) -> Tensor:
        """`H v`, `(n,) -> (n,)`, with H = d2f/dw2."""
        self.products += 1
        like = unravel(vector, self._inner)
        return ravel(vector_jacobian(self._gradient, self._inner, like, retain_graph=True))

    def mixed_product(self, vector: Tensor) -> Tree:
        """`(d2f / da dw) v`, a tree like the outer variables."""
        self.products += 1
        return vector_jacobian(self._gradient, self._outer, unravel(vector, self._inner), retain_graph=True)
