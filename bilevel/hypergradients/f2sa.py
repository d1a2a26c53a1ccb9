"""F2SA: fully first-order, two inner problems a call."""

from dataclasses import dataclass, replace
from typing import Any, TypedDict

from torch import Tensor

from bilevel.hypergradients.base import StatefulMethod, assemble, require_positive
from bilevel.hypergradients.inner_steps import Stepping
from bilevel.hypergradients.instance import Instance
from bilevel.hypergradients.penalty import descend, outer_slope
from bilevel.results import Hypergradient
from bilevel.tree import Tree, scale, subtract


class Calls(TypedDict):
    """State of `F2SA`: how often it was called."""

    calls: int


@dataclass(frozen=True)
class F2SA(StatefulMethod, Stepping):
    """`dF/da(y) + l [df/da(y) - df/da(z)]` with y = argmin F + l f and z = argmin f, each by T steps from w.

    By the envelope theorem it is the gradient of min_w [F + l (f - v)], whose distance to the hypergradient is O(1/l).
    Cost: 2 T plain steps. `Hypergradient.inner` is y.

    Attributes:
        optimizer: update rule of both inner problems; the step must suit F + l f divided by 1 + l.
        steps: T.
        penalty: l at the first call.
        growth: added to l at every further call.

    Source: Kwon et al. (F2SA, ICML 2023).
    """

    steps: int = 10
    penalty: float = 1.0
    growth: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(penalty=self.penalty)

    def init(self) -> Calls:
        """No call yet."""
        return {"calls": 0}

    def estimate(self, at: Instance, state: Calls) -> Hypergradient:
        """Solve both inner problems; see the class."""
        problem, weight = at.problem, self.penalty + self.growth * state["calls"]

        def penalised(w: Tree, a: Tree, batch: Any) -> Tensor:
            # Divided by 1 + l: the minimiser stays, and one step size serves every l.
            return (problem.outer_loss(w, a, at.outer_batch) + weight * problem.inner_loss(w, a, batch)) / (1 + weight)

        both = replace(at, problem=replace(problem, inner_loss=penalised))
        y, z = (descend(instance, self.optimizer, self.steps) for instance in (both, at))
        gap = subtract(outer_slope(at, y), outer_slope(at, z))
        stats = {"method": "f2sa", "penalty": weight, "steps": self.steps}
        after = Calls(calls=state["calls"] + 1)
        return assemble(at.outer_gradients(y), scale(weight, gap), stats, inner=y, state=after)
