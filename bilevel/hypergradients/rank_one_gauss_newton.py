"""Rank-one Gauss-Newton hypergradient, with its correct and its published sign."""

from dataclasses import dataclass

import torch

from bilevel.hypergradients.base import Method, assemble
from bilevel.hypergradients.instance import Instance
from bilevel.results import Hypergradient
from bilevel.tree import dot, gradient, norm, scale

CAUTION = (
    "RankOneGaussNewton puts a matrix of rank one in the place of the inner Hessian, so its direction can be far from "
    "the hypergradient, and training can end worse than with uniform weights. Leave `method` out for the exact "
    "derivative of the next step, look at check_hypergradient on your problem, or accept it with "
    "RankOneGaussNewton(warn=False)."
)


@dataclass(frozen=True)
class RankOneGaussNewton(Method):
    """`dF/da - rho df/da` with `rho = <dF/dw, df/dw> / |df/dw|^2`: two gradients of each loss, no second derivative.

    Replacing H by the rank-one matrix g g' and d2f/da dw by (df/da) g', with g = df/dw, in the implicit function
    theorem gives this form. It is exact for one-dimensional w with f = a/2 (w - b x)^2, undefined at df/dw = 0, and its
    indirect part is zero where f does not depend on a at fixed w. Where |df/dw| <= eps * (1 + |dF/dw|) the indirect
    part is set to zero and `stats["degenerate"]` says so.

    Attributes:
        as_published: use `dF/da + step_size * rho * df/da`, the sign and scale of semantic-priors (2026, equation 8
            and code), which is opposite to the theorem's.
        step_size: eta in the published form, the inner learning rate.
        eps: relative threshold of degeneracy.
        warn: whether a trainer that is given this method says what it is.

    Source: Liu et al. (TPAMI 2024) for the minus sign; the published form as named above.
    """

    as_published: bool = False
    step_size: float = 1e-3
    eps: float = 1e-12
    warn: bool = True

    @property
    def caution(self) -> str:
        """What a trainer should say before it follows this direction."""
        return CAUTION if self.warn else ""

    def estimate(self, at: Instance) -> Hypergradient:
        """Evaluate four gradients; see the class."""
        outer_part = at.outer_gradients()
        w, a = at.variables()
        loss = at.inner_loss(w, a)
        inner_w, inner_a = gradient(loss, (w, a))
        lead = at.problem.lead
        squared = dot(inner_w, inner_w, lead)
        threshold = (self.eps * (1 + norm(outer_part.inner, lead))) ** 2
        degenerate = squared <= threshold
        rho = dot(outer_part.inner, inner_w, lead) / torch.where(degenerate, torch.ones_like(squared), squared)
        rho = torch.where(degenerate, torch.zeros_like(rho), rho)
        factor = self.step_size * rho if self.as_published else -rho
        stats = {
            "method": "rank_one_gauss_newton",
            "as_published": self.as_published,
            "rho": rho,
            "degenerate": degenerate,
            "inner_loss": loss.detach(),
            "inner_gradient_norm": squared.sqrt(),
        }
        return assemble(outer_part, scale(factor, inner_a), stats)
