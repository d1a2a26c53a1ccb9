"""A method is a row: whatever differs between two methods is a cell here, whatever does not is written once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bilevel import GaussNewton, HypergradientMethod, Unrolled, sgd
from bilevel.registry import Registry


@dataclass(frozen=True)
class Method:
    """One training method.

    Attributes:
        summary: one line for listings.
        teacher: through what a frozen VFM speaks to the student's decoder: nothing, SCAM or SAMF.
        evolves: whether pseudo-masks follow predictions during training.
        weights: what learns sample weights.
        outer: whether outer steps also move the student along the gradient of its validation loss.
        truth: train on true masks (the supervised ceiling), never for a point-supervised row.
        soft: the loss sees soft labels instead of their pixels above 1/2.
        settings: fields of `Config` that the method's source fixes; a user's flags win over them.
    """

    summary: str
    teacher: Literal["", "scam", "samf"] = ""
    evolves: bool = False
    weights: Literal["uniform", "cluster", "network"] = "uniform"
    outer: bool = False
    truth: bool = False
    soft: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


METHODS: Registry[Method] = Registry("method")
METHODS.register(
    "semantic-priors",
    Method(
        "SCAM teacher on the student's weights, label evolution, cluster weights learned on validation",
        teacher="scam",
        evolves=True,
        weights="cluster",
        outer=True,
    ),
)
METHODS.register(
    "no-vfm",
    Method(
        "semantic-priors without VFM and SCAM: the student evolves its own labels",
        evolves=True,
        weights="cluster",
        outer=True,
    ),
)
METHODS.register(
    "no-bilevel",
    Method("semantic-priors without outer steps: uniform weights, no feedback", teacher="scam", evolves=True),
)
METHODS.register(
    "uniform-weights",
    Method("semantic-priors with outer steps on the student alone", teacher="scam", evolves=True, outer=True),
)
METHODS.register(
    "no-evolution", Method("semantic-priors on its start masks", teacher="scam", weights="cluster", outer=True)
)
METHODS.register(
    "diffuse-to-detect",
    Method(
        "heat-diffusion start masks, and sample weights from a network of image features, learned on validation",
        weights="network",
        outer=True,
        settings={"initial": "diffusion", "loss": "soft-iou"},
    ),
)
METHODS.register(
    "fdep",
    Method(
        "FDEP: SAMF at the bottleneck, main and light branch trained together (CO-ISD), the light one deployed",
        teacher="samf",
        settings={
            "loss": "edge-ohem",
            "vfm_view": "crop",
            "teacher_share": 1.0,
            "student_loss": 1.0,
            "inner_kd": 0.0,
            "share_batch_norm": False,
        },
    ),
)
METHODS.register("plain", Method("the start masks, kept fixed: no teacher, no evolution, no weights"))
METHODS.register("full", Method("true masks: the supervised ceiling", truth=True))
METHODS.register(
    "lesps",
    Method(
        "LESPS: from the points alone, soft labels grow where the network responds",
        evolves=True,
        soft=True,
        settings={
            "initial": "points",
            "loss": "soft-focal",
            "anchors": "start",
            "evolve_relative": False,
            "evolve_cap": math.inf,
            "evolve_decay": 1.0,
            "evolve_every": 5,
        },
    ),
)
METHODS.register(
    "pal",
    Method(
        "PAL: Canny start, easy images first, labels evolve and hard images are admitted",
        evolves=True,
        settings={
            "initial": "canny",
            "loss": "edge-ohem",
            "anchors": "start",
            "evolve_relative": False,
            "evolve_cap": math.inf,
            "evolve_from": 0.2,
            "evolve_every": 5,
            "alarms": 5.0,
        },
    ),
)
METHODS.register("mclc", Method("MCLC: Monte-Carlo superpixel masks, kept fixed", settings={"initial": "monte-carlo"}))


VARIANTS = ("implicit", "gauss-newton", "published")


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
    if name not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}, got {name!r}.")
    if name == "implicit":
        return Unrolled(sgd(inner_lr), steps=1)
    return GaussNewton() if name == "gauss-newton" else GaussNewton(as_published=True, step_size=inner_lr)
