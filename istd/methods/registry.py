"""A method is a row: whatever differs between two methods is a cell here, whatever does not is written once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
        draws: whether the numbers that labels are drawn with are outer variables.
        truth: train on true masks (the supervised ceiling), never for a point-supervised row.
        soft: the loss sees soft labels instead of their pixels above 1/2.
        about: a page on what it is and where it departs from its source; the docstring of the method's file.
        settings: fields of `Config` that the method's source fixes; a user's flags win over them.
    """

    summary: str
    teacher: Literal["", "scam", "samf"] = ""
    evolves: bool = False
    weights: Literal["uniform", "cluster", "network"] = "uniform"
    outer: bool = False
    draws: bool = False
    truth: bool = False
    soft: bool = False
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


METHODS: Registry[Method] = Registry("method")
