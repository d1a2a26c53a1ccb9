"""Zeroth order: antithetic evolution strategies over the outer variables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.hypergradients.base import assemble, checked_batches, outer_gradients
from bilevel.hypergradients.inner_steps import Start, check_optimizer, check_steps, run_plain, starting_point
from bilevel.inner_optimizers import OptimizerLike
from bilevel.problem import BilevelProblem, evaluate
from bilevel.results import Hypergradient
from bilevel.tree import Tree, detach, ravel, unravel


@dataclass(frozen=True)
class EvolutionStrategies:
    """`dF/da + mean_i [F(w_T(a + s e_i), a) - F(w_T(a - s e_i), a)] e_i / (2 s)`: no derivative of the inner steps.

    The e_i are Gaussian, made orthogonal in groups of m = number of outer variables, so that every full group is a
    central difference along a random basis: with m pairs (or a multiple) the estimate is exact to O(s^2). With fewer it
    is unbiased to O(s^2), with a relative variance of order m / pairs. It needs no derivative, and it does not explode
    through chaotic unrolls. Cost: 2 T plain steps per pair.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        sigma: s, in units of the outer variables.
        pairs: number of antithetic pairs.
        seed: of the directions; they are the same at every call unless it changes.
        start: see `Unrolled`.

    Source: Salimans et al. (2017); Choromanski et al. (2018) for orthogonal directions; Metz et al. (2019) on unrolls.
    """

    optimizer: OptimizerLike
    steps: int
    sigma: float = 0.01
    pairs: int = 16
    seed: int = 0
    start: Start | None = None

    def __post_init__(self) -> None:
        check_steps("steps", self.steps)
        check_steps("pairs", self.pairs)
        check_optimizer(self.optimizer)
        if not self.sigma > 0:
            raise ValueError(f"`sigma` must be positive, got {self.sigma}.")

    def __call__(
        self, problem: BilevelProblem, inner: Tree, outer: Tree, inner_batches: Sequence[Any], outer_batch: Any
    ) -> Hypergradient:
        """Run 2 * pairs inner problems; see the class."""
        if problem.lead:
            raise ValueError("`EvolutionStrategies` takes one problem at a time.")
        batches = checked_batches(inner, outer, inner_batches)
        flat = ravel(detach(outer))

        def moved(direction: Tensor) -> tuple[Tree, Tensor]:
            a = unravel(flat + self.sigma * direction, outer)
            point = starting_point(self.optimizer, inner, a, self.start)
            w = detach(run_plain(problem, self.optimizer, point, a, batches, range(self.steps)).inner)
            with torch.no_grad():
                return w, evaluate(problem, "outer_loss", w, outer, outer_batch)

        final, _ = moved(torch.zeros_like(flat))
        outer_part = outer_gradients(problem, final, outer, outer_batch)
        estimate = torch.zeros_like(flat)
        for direction in self._directions(flat):
            difference = moved(direction)[1] - moved(-direction)[1]
            estimate = estimate + difference * direction / (2 * self.sigma * self.pairs)
        stats = {"method": "evolution_strategies", "steps": self.steps, "pairs": self.pairs}
        return assemble(outer_part, unravel(estimate, outer), stats)

    def _directions(self, like: Tensor) -> Tensor:
        """`(pairs, m)`, orthogonal within groups of m and of squared length m."""
        m = like.numel()
        generator = torch.Generator().manual_seed(self.seed)
        groups = []
        for first in range(0, self.pairs, m):
            k = min(m, self.pairs - first)
            q, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
            groups.append(q.T * m**0.5)
        return torch.cat(groups).to(like)
