"""Which second-order product an unroll uses on a problem: compared once, then the quicker one."""

import time
import warnings
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from bilevel.hypergradients.base import HypergradientWarning
from bilevel.products import reverse_over_forward, reverse_over_reverse
from bilevel.tree import Tree, leaves

Products = Callable[..., tuple[Tree | None, Tree]]
PRODUCTS: dict[str, Products] = {"reverse": reverse_over_reverse, "forward": reverse_over_forward}


class Trial(TypedDict):
    """How far the comparison of two products has come: the one settled on, whether they agree, seconds of each."""

    settled: str | None
    agreed: bool
    seconds: dict[str, float]


def new_trial() -> Trial:
    """Nothing is known yet."""
    return {"settled": None, "agreed": False, "seconds": {}}


class ProductChoice:
    """Products of one problem that are the reverse ones unless the forward ones were seen to be equal, and quicker.

    Reverse over reverse is what `Unrolled` computes too. Reverse over forward rests on forward-mode rules, whose own
    derivative a library may have got wrong (`bilevel.forward_rules` describes such a case). So the first call computes
    both, compares them and returns the reverse one; later calls use `wanted`, or time each once and keep the quicker.

    Two correct products differ by rounding: relative to the larger one, in the Euclidean norm, by some eps times the
    cancellation inside the loss. `4 sqrt(eps)` (6e-8 in float64, 1.4e-3 in float32) leaves that a factor of
    `1 / sqrt(eps)`. What differs by more is given up for this problem.

    Args:
        wanted: `auto` for the quicker one, `forward` for the forward one, `reverse` for the other without a trial.
        trial: what earlier calls on the same problem have found; None where nothing needs to be found.

    Attributes:
        used: name of the product that the last call returned.
    """

    def __init__(self, wanted: str, trial: Trial | None = None) -> None:
        self.wanted = wanted
        self.used = "reverse"
        trial = trial or new_trial()
        self.settled = "reverse" if wanted == "reverse" else trial["settled"]
        self._agreed = trial["agreed"]
        self._seconds = dict(trial["seconds"])

    @property
    def trial(self) -> Trial:
        """What the calls have found so far."""
        return {"settled": self.settled, "agreed": self._agreed, "seconds": dict(self._seconds)}

    def __call__(
        self, loss: Callable[[Tree, Tree], Tensor], inner: Tree, outer: Tree, vector: Tree, *, hessian: bool
    ) -> tuple[Tree | None, Tree]:
        """`(H v, (d2f / da dw) v)`, the first None without `hessian`; see `bilevel.products`.

        Args:
            loss: f(w, a), evaluated anew by every product: it must draw the same random numbers each time.
            inner: w, requiring gradients.
            outer: a, requiring gradients.
            vector: v, a tree like w.
            hessian: whether H v is wanted.

        Warns:
            HypergradientWarning: once, where `wanted` is `forward` and the forward products cannot be had.
        """

        def product(name: str) -> tuple[Tree | None, Tree]:
            self.used = name
            return PRODUCTS[name](loss, inner, outer, vector, hessian=hessian)

        if self.settled is not None:
            return product(self.settled)
        if not self._agreed:
            # Where dF/dw = 0 both products are zero, which says nothing about the forward rules.
            seen = any(bool(x.any()) for x in leaves(vector))
            return self._compare(product) if seen else product("reverse")
        name = next(name for name in PRODUCTS if name not in self._seconds)
        started = _now(vector)
        out = product(name)
        self._seconds[name] = _now(vector) - started
        if len(self._seconds) == len(PRODUCTS):
            self.settled = min(self._seconds, key=self._seconds.__getitem__)
        return out

    def _compare(self, product: Callable[[str], tuple[Tree | None, Tree]]) -> tuple[Tree | None, Tree]:
        """Both products; the reverse one is returned."""
        reason = ""
        try:
            forward = product("forward")
        except (NotImplementedError, RuntimeError) as error:
            forward, reason = None, f"an operation in `inner_loss` has no forward-mode rule ({error})"
        reverse = product("reverse")
        if forward is not None:
            far = max(_distance(x, y) for x, y in zip(forward, reverse, strict=True) if y is not None)
            if far != far:  # NaN: this call decides nothing
                return reverse
            if far > 4 * torch.finfo(leaves(reverse[1])[0].dtype).eps ** 0.5:
                reason = f"the forward product is {far:.1e} away from the reverse one: the derivative of some "
                reason += "forward-mode rule is wrong, or `inner_loss` is not the same function twice"
        if not reason:
            self._agreed = True
            self.settled = "forward" if self.wanted == "forward" else None
            return reverse
        self.settled = "reverse"
        if self.wanted == "forward":
            warnings.warn(
                f"products='forward' is given up on this problem, and 'reverse' used: {reason[:300]}.",
                HypergradientWarning,
                stacklevel=2,
            )
        return reverse


def _distance(a: Tree, b: Tree) -> float:
    """`|a - b| / max(|a|, |b|)` over all leaves; 0 where both vanish."""
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    norms = [torch.stack([x.double().norm() for x in column]).norm() for column in zip(*pairs, strict=True)]
    gap = torch.stack([(x.double() - y.double()).norm() for x, y in pairs]).norm()
    largest = torch.stack(norms).max()
    return float(torch.where(largest == 0, largest, gap / largest))


def _now(tree: Tree) -> float:
    device = leaves(tree)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
