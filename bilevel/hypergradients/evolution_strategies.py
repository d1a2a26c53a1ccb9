"""Zeroth order: antithetic evolution strategies over the outer variables."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.hypergradients.base import Method, assemble, require_counts, require_positive
from bilevel.hypergradients.inner_steps import Start, Stepping, run_plain, starting_point
from bilevel.hypergradients.instance import Instance
from bilevel.results import Hypergradient
from bilevel.tree import Tree, detach, ravel, unravel


@dataclass(frozen=True)
class EvolutionStrategies(Method, Stepping):
    """`dF/da + mean_i [F(w_T(a + s e_i), a) - F(w_T(a - s e_i), a)] e_i / (2 s)`: no derivative of the inner steps.

    The e_i are Gaussian, made orthogonal in groups of m = number of outer variables, so that every full group is a
    central difference along a random basis: with m pairs (or a multiple) the estimate is exact to O(s^2). With fewer it
    is unbiased to O(s^2), with a relative variance of order m / pairs. It needs no derivative, and it does not explode
    through chaotic unrolls. Cost: 2 T plain steps per pair.

    Attributes:
        optimizer: see `Unrolled`.
        steps: T.
        sigma: s, the size of a step in the outer variables.
        pairs: number of antithetic pairs.
        seed: of the directions; they are the same at every call unless it changes.
        start: see `Unrolled`.

    Source: Salimans et al. (2017); Choromanski et al. (2018) for orthogonal directions; Metz et al. (2019) on unrolls.
    """

    sigma: float = 0.01
    pairs: int = 16
    seed: int = 0
    start: Start | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(pairs=self.pairs)
        require_positive(sigma=self.sigma)

    def estimate(self, at: Instance) -> Hypergradient:
        """Run 2 * pairs inner problems; see the class."""
        at.require_one_problem(self)
        flat = ravel(detach(at.outer))

        def moved(direction: Tensor) -> tuple[Tree, Tensor]:
            a = unravel(flat + self.sigma * direction, at.outer)
            point = starting_point(self.optimizer, at.inner, a, self.start)
            w = detach(run_plain(at, self.optimizer, point, range(self.steps), a).inner)
            with torch.no_grad():
                return w, at.outer_loss(w, at.outer)

        final, _ = moved(torch.zeros_like(flat))
        outer_part = at.outer_gradients(final)
        estimate = torch.zeros_like(flat)
        for direction in self._directions(flat):
            difference = moved(direction)[1] - moved(-direction)[1]
            estimate = estimate + difference * direction / (2 * self.sigma * self.pairs)
        stats = {"method": "evolution_strategies", "steps": self.steps, "pairs": self.pairs}
        return assemble(outer_part, unravel(estimate, at.outer), stats)

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
