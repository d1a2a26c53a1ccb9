"""What every hypergradient method shares: its signature, its record, and what it refuses and warns of."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel.hypergradients.instance import Instance, OuterGradients
from bilevel.problem import BilevelProblem
from bilevel.results import Hypergradient
from bilevel.tree import Tree, add


class HypergradientWarning(UserWarning):
    """A hypergradient whose assumptions do not hold where it was evaluated."""


class NotFiniteError(FloatingPointError):
    """A hypergradient, or the outer loss, is NaN or infinite."""


class HypergradientMethod(Protocol):
    """One signature for every method; `hypergradient` calls it, and checks the arguments before.

    A method that carries something from one call to the next has `init() -> state` too, takes `state` as its sixth
    argument (None begins anew) and returns the new one as `Hypergradient.state`. A state is plain data that belongs to
    one problem: None, or a dict of tensors, numbers, strings and containers of them.
    """

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Estimate dF(w*(a), a)/da near `inner`."""
        ...


class Method(ABC):
    """Base of the methods that carry nothing: a dataclass of settings, and one function that estimates."""

    @abstractmethod
    def estimate(self, at: Instance) -> Hypergradient:
        """Estimate dF(w*(a), a)/da near the given inner variables."""

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """See `HypergradientMethod`; `hypergradient` is the function to call."""
        return self.estimate(Instance(problem, inner, outer, list(inner_batches), outer_batch))


class StatefulMethod(ABC):
    """Base of the methods that carry something from call to call."""

    @abstractmethod
    def init(self) -> Any:
        """The state before the first call; None where these settings have nothing to carry."""

    @abstractmethod
    def estimate(self, at: Instance, state: Any) -> Hypergradient:
        """Estimate dF(w*(a), a)/da near the given inner variables; the new state is in the result."""

    def __call__(
        self,
        problem: BilevelProblem,
        inner: Tree,
        outer: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        state: Any = None,
    ) -> Hypergradient:
        """See `HypergradientMethod`; `hypergradient` is the function to call."""
        at = Instance(problem, inner, outer, list(inner_batches), outer_batch)
        return self.estimate(at, self.init() if state is None else state)


def assemble(
    outer: OuterGradients, indirect: Tree, stats: dict[str, Any], inner: Tree | None = None, state: Any = None
) -> Hypergradient:
    """Add direct and indirect terms and pack the record.

    Args:
        outer: value and gradients of the outer loss.
        indirect: the indirect term.
        stats: facts.
        inner: where the method has moved the inner variables.
        state: what it carries to its next call.
    """
    return Hypergradient(
        value=add(outer.direct, indirect),
        direct=outer.direct,
        indirect=indirect,
        inner_gradient=outer.inner,
        outer_loss=outer.loss,
        stats=stats,
        inner=inner,
        state=state,
    )


def require_dependence(inner_loss: Tensor) -> None:
    """Raise for an inner loss without a graph.

    Raises:
        ValueError: if it does not depend on the inner variables.
    """
    if not inner_loss.requires_grad:
        raise ValueError("`inner_loss` does not depend on the inner variables: is something detached in it?")


def require_counts(**settings: int) -> None:
    """Raise unless every setting is at least one.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def require_positive(**settings: float) -> None:
    """Raise unless every setting is positive.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def warn_if_unreliable(stats: dict[str, Any]) -> None:
    """Warn where an implicit estimate rests on a system that was not solved or on negative curvature."""
    curvature = stats["minimum_curvature"]
    if bool((curvature <= 0).any()):
        warnings.warn(
            f"The inner Hessian has a direction of curvature {float(curvature.min()):.2e} <= 0, so the inner variables "
            "are not at a minimum and the implicit hypergradient may point anywhere; train the inner problem further, "
            "add damping, or use Unrolled.",
            HypergradientWarning,
            stacklevel=3,
        )
    elif not bool(torch.as_tensor(stats["converged"]).all()):
        warnings.warn(
            f"The linear system was not solved (residual {float(stats['residual_norm'].max()):.2e} after "
            f"{stats['iterations']} products); raise max_iter or terms, or loosen rtol.",
            HypergradientWarning,
            stacklevel=3,
        )
