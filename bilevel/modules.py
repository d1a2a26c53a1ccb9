"""From nn.Modules and closures over them to the pure functions of a `BilevelProblem`.

A loss is written the ordinary way, `loss(inner_module, outer_module, batch)`. Here it becomes a function of two dicts
of parameters, evaluated through `torch.func.functional_call`. Buffers (BatchNorm statistics, say) are values: every
evaluation works on copies, so a hypergradient never changes them. Tied parameters stay tied.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bilevel.problem import BilevelProblem
from bilevel.spectral_norm import power_iterations, stored_vectors
from bilevel.statistics import MeasuredStatistics
from bilevel.tree import Tree
from bilevel.weight_norm import ComposedWeightNorm, has_weight_norm

ModuleLoss = Callable[[Any, Any, Any], Tensor]
"""`loss(inner_module, outer_module, batch) -> 0-d tensor`."""


class _Closure(nn.Module):
    """Both modules under one roof, so that one functional call replaces the parameters of both."""

    def __init__(self, inner: nn.Module, outer: nn.Module, loss: ModuleLoss) -> None:
        super().__init__()
        self.inner = inner
        self.outer = outer
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.inner, self.outer, batch)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of a module by name, detached; a shared one is listed once."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def pure_loss(inner: nn.Module, outer: nn.Module, loss: ModuleLoss) -> Callable[[Tree, Tree, Any], Tensor]:
    """Turn `loss(inner_module, outer_module, batch)` into `loss(inner_tree, outer_tree, batch)`.

    Args:
        inner: module whose trainable parameters form the inner tree (`parameters_of(inner)`).
        outer: module whose trainable parameters form the outer tree.
        loss: closure over both; it must use the modules it is handed, not ones it has captured.

    Returns:
        A function of the trees that leaves the modules as they are.

    Raises:
        ValueError: if the modules share a trainable parameter: list it on one side only; or if an embedding in them
            has `max_norm`, which changes its weight whenever it is used.
        RuntimeError: if the loss uses activation checkpointing.
    """
    shared = {id(p) for p in inner.parameters() if p.requires_grad} & {
        id(p) for p in outer.parameters() if p.requires_grad
    }
    if shared:
        names = [name for name, p in outer.named_parameters() if id(p) in shared]
        raise ValueError(
            f"`inner` and `outer` share the parameters {names}; keep them in `inner`, and pass `shared=` to the "
            "trainer if the outer objective is to move them directly."
        )
    closure = _Closure(inner, outer, loss)
    checked = normalised = False
    iterating: list[Any] = []

    def pure(inner_tree: Tree, outer_tree: Tree, batch: Any) -> Tensor:
        values = {f"inner.{name}": value for name, value in inner_tree.items()}
        # The trainer gives an outer module without parameters one variable without a name.
        values |= {f"outer.{name}": value for name, value in outer_tree.items() if name}
        values |= {name: buffer.detach().clone() for name, buffer in closure.named_buffers()}
        nonlocal checked, normalised, iterating
        if not checked:
            _check_embeddings(inner, outer)
            normalised, iterating = has_weight_norm(inner, outer), power_iterations(inner, outer)
        rules = ComposedWeightNorm() if normalised else nullcontext()
        vectors = stored_vectors(iterating) if iterating else nullcontext()
        with _without_recomputation(), rules, vectors, nullcontext() if checked else _without_reentrant_checkpoints():
            out: Tensor = functional_call(closure, values, (batch,))
        checked = True
        return out

    return pure


def _check_embeddings(*modules: nn.Module) -> None:
    for module in modules:
        for name, part in module.named_modules():
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None:
                raise ValueError(
                    f"The embedding {name!r} has max_norm={part.max_norm}: using it would change the model's weight in "
                    "place. Set max_norm=None and bound the rows in the loss, or after each step of the optimizer."
                )


_RECOMPUTATION = (
    "A loss over modules cannot use activation checkpointing (or other hooks on saved tensors): its recomputation "
    "would see the module's own parameters instead of the inner variables. Leave it out (RecomputedUnrolled keeps one "
    "inner graph), or write the loss as a pure function of the two trees; save_on_cpu() may be used around the "
    "whole call."
)


@contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    """Refuse the reentrant kind too, which only warns that the gradients of what it holds are missing.

    Filters of warnings are global and slow to change, so the first evaluation of a loss looks for it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="None of the inputs have requires_grad=True")
        try:
            yield
        except UserWarning as warning:
            if "None of the inputs have requires_grad" not in str(warning):
                raise
            raise RuntimeError(_RECOMPUTATION) from warning


@contextmanager
def _without_recomputation() -> Iterator[None]:
    """Refuse activation checkpointing inside a module's loss.

    It runs parts of the module once more in the backward pass, when the module holds its own parameters again and no
    longer those that the loss was evaluated at: the derivative would silently be wrong.
    """
    refused = torch.autograd.graph.disable_saved_tensors_hooks(_RECOMPUTATION)
    try:
        refused.__enter__()
    except RuntimeError:  # hooks around the whole call, or a functional transform, which refuses them itself
        yield
        return
    try:
        yield
    finally:
        refused.__exit__(None, None, None)


def problem_from_modules(
    inner: nn.Module,
    outer: nn.Module,
    inner_loss: ModuleLoss,
    outer_loss: ModuleLoss,
    statistics: Callable[[Any, Any, Any], Any] | None = None,
) -> BilevelProblem:
    """A `BilevelProblem` over the trainable parameters of two modules.

    Spectral normalisation uses its singular vectors as they are stored, which makes it a differentiable function of
    the weight; a training step of the module improves them.

    Which statistics batch normalisation uses: in training mode those of the batch. In eval mode the running ones that
    the module has stored; they are constants and do not advance while an unroll does, so after many steps they are
    those of other weights. With `statistics` the outer loss uses, in their place, those of a pass at its own inner
    variables ("precise" statistics), and their derivative is part of the hypergradient of every method.

    Args:
        inner: module of the inner variables.
        outer: module of the outer variables.
        inner_loss: `loss(inner_module, outer_module, batch)`.
        outer_loss: the same.
        statistics: `statistics(inner_module, outer_module, outer_batch)` runs `inner_module` on the data whose
            statistics the outer loss is to use, the training data as a rule; what it returns is ignored.

    Source: Wu and Johnson (2021), section 3, for statistics measured at the final weights.

    Example:
        >>> import torch
        >>> model, weight = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
        >>> problem = problem_from_modules(
        ...     model, weight, lambda m, w, x: w(m(x)).mean(), lambda m, w, x: m(x).square().mean()
        ... )
        >>> problem.outer_loss(parameters_of(model), parameters_of(weight), torch.zeros(3, 2)).shape
        torch.Size([])
    """
    if statistics is not None:
        outer_loss = _with_statistics(outer_loss, statistics)
    return BilevelProblem(pure_loss(inner, outer, inner_loss), pure_loss(inner, outer, outer_loss))


def _with_statistics(loss: ModuleLoss, statistics: Callable[[Any, Any, Any], Any]) -> ModuleLoss:
    """The loss, with batch normalisation by what a pass at the same variables measures."""

    def measured(inner: Any, outer: Any, batch: Any) -> Tensor:
        found = MeasuredStatistics()
        with found.measured():
            statistics(inner, outer, batch)
        with found.used():
            return loss(inner, outer, batch)

    return measured
