"""The exact derivative through the step that a running torch optimizer would take next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.hypergradients.base import Method, require_counts
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.results import Hypergradient
from bilevel.torch_optimizers import from_torch
from bilevel.tree import Tree


@dataclass(frozen=True)
class NextStep(Method):
    """`dF(w + U(df/dw, s, w), a)/da`, U the update of a torch optimizer at its present rates and state s (moments).

    It is `Unrolled(rule, steps, state=state)` with the twin of the optimizer, made anew at every call: schedules of
    learning rates, momentum and moments take part with their present values. `BilevelTrainer` uses it where no method
    is given. Cost and memory: those of `Unrolled`.

    Attributes:
        optimizer: a `torch.optim.SGD`, `Adam` or `AdamW`.
        parameters: its parameters by the names of the inner tree, `dict(model.named_parameters())`.
        steps: inner steps.

    Example:
        >>> import torch, bilevel
        >>> model, weight = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1, bias=False)
        >>> problem = bilevel.problem_from_modules(
        ...     model, weight, lambda m, a, x: a(m(x)).square().mean(), lambda m, a, x: m(x).mean()
        ... )
        >>> method = NextStep(torch.optim.Adam(model.parameters(), 1e-3), dict(model.named_parameters()))
        >>> w, a, x = bilevel.parameters_of(model), bilevel.parameters_of(weight), torch.ones(3, 2)
        >>> bilevel.hypergradient(problem, w, a, [x], x, method).value["weight"].shape
        torch.Size([1, 1])
    """

    optimizer: torch.optim.Optimizer
    parameters: Mapping[str, Tensor]
    steps: int = 1

    def __post_init__(self) -> None:
        require_counts(steps=self.steps)

    def twin(self, inner: Tree) -> tuple[Any, Any]:
        """The differentiable rule for the variables of `inner`, and its state now.

        Raises:
            ValueError: if the optimizer has none; the message says what to pass instead.
        """
        try:
            return from_torch(self.optimizer, {name: self.parameters[name] for name in inner})
        except ValueError as error:
            raise ValueError(
                f"The next step of {type(self.optimizer).__name__} cannot be differentiated: {error} Name a method, "
                "for instance method=Unrolled(bilevel.sgd(lr)) or method='conjugate_gradient'."
            ) from error

    def estimate(self, at: Instance) -> Hypergradient:
        """Unroll and differentiate; see the class."""
        rule, state = self.twin(at.inner)
        return Unrolled(rule, self.steps, state=state).estimate(at)
