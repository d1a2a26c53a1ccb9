"""Vector-space operations on trees of tensors (nested dicts, lists, tuples; one tensor is a tree too).

`lead` counts leading dimensions that number independent problems (see `bilevel.batched`): inner products and norms are
then taken per problem, and vectors have shape `(*lead dimensions, n)`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor

Tree: TypeAlias = Any
"""Nested dicts, lists and tuples whose leaves are tensors."""


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in a fixed order (dict keys sorted)."""
    return list(optree.tree_leaves(tree))


def map_leaves(function: Callable[..., Tensor], tree: Tree, *rest: Tree) -> Tree:
    """Apply `function` leaf by leaf; all trees must share one structure."""
    return optree.tree_map(function, tree, *rest)


def rebuild(tree: Tree, new_leaves: Sequence[Tensor]) -> Tree:
    """A tree of the structure of `tree` that holds `new_leaves`."""
    return optree.tree_unflatten(optree.tree_structure(tree), list(new_leaves))


def zeros_like(tree: Tree) -> Tree:
    """Tree of zeros."""
    return map_leaves(torch.zeros_like, tree)


def add(a: Tree, b: Tree) -> Tree:
    """The sum a + b."""
    return map_leaves(torch.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """The difference a - b."""
    return map_leaves(torch.sub, a, b)


def scale(factor: Tensor | float, tree: Tree) -> Tree:
    """The product factor * tree; a factor with dimensions holds one number per problem."""
    if not isinstance(factor, Tensor) or factor.ndim == 0:
        return map_leaves(lambda x: factor * x, tree)
    return map_leaves(lambda x: factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim)) * x, tree)


def dot(a: Tree, b: Tree, lead: int = 0) -> Tensor:
    """Sum over all leaves of <a, b>; a 0-d tensor, or one number per problem."""
    products = [
        (x * y).flatten(lead).sum(-1) if x.ndim > lead else x * y for x, y in zip(leaves(a), leaves(b), strict=True)
    ]
    return torch.stack(products).sum(0)


def norm(tree: Tree, lead: int = 0) -> Tensor:
    """Euclidean norm over all leaves; a 0-d tensor, or one number per problem."""
    return dot(tree, tree, lead).sqrt()


class Layout:
    """How the leaves of a tree lie in one vector, worked out once for the many products of a linear solve.

    Args:
        like: tree with the shapes of the leaves.
        lead: leading dimensions that number independent problems.
    """

    def __init__(self, like: Tree, lead: int = 0) -> None:
        self.leaves = leaves(like)
        self._lead = lead
        self._shapes = [x.shape for x in self.leaves]
        self._sizes = [shape[lead:].numel() for shape in self._shapes]

    def split(self, vector: Tensor) -> list[Tensor]:
        """`(*lead dimensions, n)` to one tensor per leaf."""
        if len(self._shapes) == 1:
            return [vector.reshape(self._shapes[0])]
        parts = torch.split(vector, self._sizes, dim=-1)
        return [p.reshape(shape) for p, shape in zip(parts, self._shapes, strict=True)]

    def join(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Inverse of `split`; a missing part is zero."""
        lead = self._lead
        flat = [
            (torch.zeros_like(x) if p is None else p).reshape(*x.shape[:lead], -1)
            for p, x in zip(parts, self.leaves, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def ravel(tree: Tree, lead: int = 0) -> Tensor:
    """All leaves as one `(n,)` vector, or `(*lead dimensions, n)`."""
    layout = Layout(tree, lead)
    return layout.join(layout.leaves)


def unravel(vector: Tensor, like: Tree) -> Tree:
    """Inverse of `ravel` for a tree of the shapes of `like`."""
    return rebuild(like, Layout(like, vector.ndim - 1).split(vector))


def as_variables(tree: Tree) -> Tree:
    """Detached leaves that require gradients: fresh variables with the values of `tree`."""
    return map_leaves(lambda x: x.detach().requires_grad_(True), tree)


def detach(tree: Tree) -> Tree:
    """The same values as constants."""
    return map_leaves(lambda x: x.detach(), tree)


def differentiate(
    outputs: Sequence[Tensor], wanted: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None, **options: bool
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad` with None for unused tensors, which refuses a graph without second derivatives.

    Raises:
        RuntimeError: if a graph of the derivative is made (`create_graph`), or used, through a function that
            `torch.compile` has compiled, or through a fused attention kernel.
        TypeError: for a sparse gradient.
    """
    if options.get("create_graph") and _COMPILER in sys.modules and _has_compiled_node(outputs, wanted):
        raise RuntimeError(_NO_SECOND_DERIVATIVE)
    try:
        found = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, **options)
    except RuntimeError as error:
        if "_scaled_dot_product" in str(error):
            raise RuntimeError(
                "A fused attention kernel has no second derivative. Inner losses take the composed one by themselves; "
                "leave out the sdpa_kernel(...) that overrides this, or add SDPBackend.MATH."
            ) from error
        if "double backward" in str(error) or "donated buffer" in str(error):
            raise RuntimeError(_NO_SECOND_DERIVATIVE) from error
        raise
    if any(g is not None and g.layout != torch.strided for g in found):
        raise TypeError(SPARSE_GRADIENT)
    return found


SPARSE_GRADIENT = (
    "A loss gave a sparse gradient, which has no second derivative (an embedding with sparse=True?); set sparse=False, "
    "which gives the same numbers."
)


_COMPILER = "torch._functorch._aot_autograd.runtime_wrappers"
"""Loaded with the first function that torch.compile compiles for training; before, no graph holds one."""

_NO_SECOND_DERIVATIVE = (
    "A loss that torch.compile has compiled has no second derivatives. Pass it uncompiled to this method, or use a "
    "first-order one: FiniteDifference, SAMA, F2SA, BOME, MESO."
)


def _has_compiled_node(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether a compiled function lies between `wanted` and `outputs`.

    Its gradient carries a graph that leads nowhere, so a second derivative would silently be zero; torch itself
    raises only in some states of the compiler.
    """
    seen: set[Any] = {x.grad_fn for x in wanted}
    waiting = [y.grad_fn for y in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CompiledFunctionBackward":
            return True
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


def gradient(output: Tensor, variables: Tree, *, create_graph: bool = False, retain_graph: bool | None = None) -> Tree:
    """The derivative d output / d variables, with zeros (not None) for variables that `output` does not use.

    An output with several numbers (independent problems) is summed, which gives each problem its own gradient.
    """
    wanted = leaves(variables)
    if not output.requires_grad:
        return zeros_like(variables)
    grads = differentiate(
        [output.sum() if output.ndim else output],
        wanted,
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
    )
    return rebuild(variables, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)])


def vector_jacobian(outputs: Tree, variables: Tree, vector: Tree, *, retain_graph: bool = False) -> Tree:
    """The product vector' (d outputs / d variables), zeros for unused variables and for outputs that are constants."""
    pairs = [(y, v) for y, v in zip(leaves(outputs), leaves(vector), strict=True) if y.requires_grad]
    wanted = leaves(variables)
    if not pairs:
        return zeros_like(variables)
    ys, vs = zip(*pairs, strict=True)
    grads = differentiate(ys, wanted, vs, retain_graph=retain_graph)
    return rebuild(variables, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)])


def check_variables(tree: Tree, name: str) -> None:
    """Raise unless `tree` holds at least one tensor and all are floating point on one device.

    Raises:
        TypeError: for a leaf that is no floating point tensor.
        ValueError: for an empty tree or leaves on several devices.
    """
    found = leaves(tree)
    if not found:
        raise ValueError(f"`{name}` is an empty tree; it must hold at least one tensor.")
    for leaf in found:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            kind = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            hint = " Split complex variables by torch.view_as_real." if isinstance(leaf, Tensor) else ""
            raise TypeError(f"`{name}` holds {kind}; every leaf must be a floating point tensor.{hint}")
    devices = {leaf.device for leaf in found}
    if len(devices) > 1:
        raise ValueError(f"`{name}` lies on several devices ({', '.join(map(str, devices))}); move it to one.")
