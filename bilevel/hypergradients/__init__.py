"""Hypergradient methods: one idea a file, one signature, one door (`hypergradient`)."""

from bilevel.deprecation import moved_names
from bilevel.hypergradients.base import HypergradientMethod, HypergradientWarning, NotFiniteError
from bilevel.hypergradients.bome import BOME
from bilevel.hypergradients.checkpointed import CheckpointedUnrolled
from bilevel.hypergradients.dispatch import METHODS, hypergradient, resolve_method
from bilevel.hypergradients.evolution_strategies import EvolutionStrategies
from bilevel.hypergradients.f2sa import F2SA
from bilevel.hypergradients.finite_difference import FiniteDifference
from bilevel.hypergradients.fixed_point import FixedPoint
from bilevel.hypergradients.forward_mode import ForwardUnrolled
from bilevel.hypergradients.implicit import Implicit
from bilevel.hypergradients.meso import MESO
from bilevel.hypergradients.next_step import NextStep
from bilevel.hypergradients.rank_one_gauss_newton import RankOneGaussNewton
from bilevel.hypergradients.recomputed import RecomputedUnrolled
from bilevel.hypergradients.sama import SAMA
from bilevel.hypergradients.trajectory import AggregatedUnrolled, PessimisticUnrolled
from bilevel.hypergradients.unrolled import TruncatedUnrolled, Unrolled

__all__ = [
    "BOME",
    "F2SA",
    "MESO",
    "METHODS",
    "SAMA",
    "AggregatedUnrolled",
    "CheckpointedUnrolled",
    "EvolutionStrategies",
    "FiniteDifference",
    "FixedPoint",
    "ForwardUnrolled",
    "HypergradientMethod",
    "HypergradientWarning",
    "Implicit",
    "NextStep",
    "NotFiniteError",
    "PessimisticUnrolled",
    "RankOneGaussNewton",
    "RecomputedUnrolled",
    "TruncatedUnrolled",
    "Unrolled",
    "hypergradient",
    "resolve_method",
]

__getattr__ = moved_names(__name__)
