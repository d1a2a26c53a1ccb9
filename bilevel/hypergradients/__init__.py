"""Hypergradient methods: one idea a file, one signature, one door (`hypergradient`)."""

from bilevel.hypergradients.base import HypergradientMethod, HypergradientWarning
from bilevel.hypergradients.dispatch import METHODS, hypergradient, resolve_method
from bilevel.hypergradients.finite_difference import FiniteDifference
from bilevel.hypergradients.gauss_newton import GaussNewton
from bilevel.hypergradients.implicit import Implicit
from bilevel.hypergradients.unrolled import CheckpointedUnrolled, TruncatedUnrolled, Unrolled

__all__ = [
    "METHODS",
    "CheckpointedUnrolled",
    "FiniteDifference",
    "GaussNewton",
    "HypergradientMethod",
    "HypergradientWarning",
    "Implicit",
    "TruncatedUnrolled",
    "Unrolled",
    "hypergradient",
    "resolve_method",
]
