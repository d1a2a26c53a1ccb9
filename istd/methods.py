"""A method is a row: whatever differs between two methods is a cell here, whatever does not is written once."""

from dataclasses import dataclass
from typing import Literal

from bilevel import GaussNewton, HypergradientMethod, Unrolled, sgd
from bilevel.registry import Registry


@dataclass(frozen=True)
class Method:
    """One training method.

    Attributes:
        summary: one line for listings.
        teacher: whether a frozen VFM speaks to the student through SCAM.
        evolves: whether pseudo-masks follow predictions during training.
        weights: what learns sample weights.
        truth: train on true masks (the supervised ceiling), never for a point-supervised row.
    """

    summary: str
    teacher: bool = False
    evolves: bool = False
    weights: Literal["uniform", "cluster"] = "uniform"
    truth: bool = False


METHODS: Registry[Method] = Registry("method")
METHODS.register(
    "semantic-priors",
    Method(
        "SCAM teacher on the student's weights, label evolution, cluster weights learned on validation",
        teacher=True,
        evolves=True,
        weights="cluster",
    ),
)
METHODS.register("plain", Method("the start masks, kept fixed: no teacher, no evolution, no weights"))
METHODS.register("full", Method("true masks: the supervised ceiling", truth=True))


def hypergradient_variant(name: str, inner_lr: float) -> HypergradientMethod:
    """The hypergradient of semantic-priors as derived, or as published.

    Args:
        name: `"implicit"`: one exactly differentiated inner step, the derivative of the validation loss after it;
            `"gauss-newton"`: the rank-one form with the implicit function theorem's sign;
            `"published"`: the rank-one form with the published sign and scale.
        inner_lr: the inner learning rate.

    Raises:
        ValueError: for another name.
    """
    variants: dict[str, HypergradientMethod] = {
        "implicit": Unrolled(sgd(inner_lr), steps=1),
        "gauss-newton": GaussNewton(),
        "published": GaussNewton(as_published=True, step_size=inner_lr),
    }
    if name not in variants:
        raise ValueError(f"`variant` must be one of {', '.join(variants)}, got {name!r}.")
    return variants[name]
