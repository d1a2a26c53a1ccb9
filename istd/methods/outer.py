"""Outer steps: settings that methods with an outer problem share, and the hypergradients they choose from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from bilevel import HypergradientMethod, RankOneGaussNewton, Unrolled, sgd
from bilevel.registry import Registry
from istd.labels import point_maps
from istd.methods.base import Context, OuterProblem, Target
from istd.methods.student_rate import StudentRate
from istd.objectives import PointOuter
from istd.schema import OneOf, Range, check
from istd.settings import Settings
from istd.weights.alignment import OutputAlignment

HYPERGRADIENTS: Registry[Callable[[float, nn.Module, nn.Module], HypergradientMethod]] = Registry("hypergradient")
"""By name, `(inner learning rate, student, outer module) -> method`."""
HYPERGRADIENTS.register("one-step-unrolled", lambda lr, student, outer: Unrolled(sgd(lr), steps=1))
HYPERGRADIENTS.register("rank-one", lambda lr, student, outer: RankOneGaussNewton(warn=False))
HYPERGRADIENTS.register(
    "rank-one-published",
    lambda lr, student, outer: RankOneGaussNewton(as_published=True, step_size=lr, warn=False),
)
HYPERGRADIENTS.register("output-alignment", lambda lr, student, outer: OutputAlignment(student, outer))

STUDENT_RATE = 0.1  # of the inner learning rate: what the student's own outer step follows


@dataclass(frozen=True)
class OuterSteps:
    """The outer steps.

    Attributes:
        hypergradient: "one-step-unrolled" (exact through one inner step), "rank-one" (Gauss-Newton, with the sign of
            the implicit function theorem), "rank-one-published" (its published sign and scale) or "output-alignment"
            (diffuse-to-detect's published score, no hypergradient).
        every: period of outer phases in epochs.
        steps: outer steps per phase.
        lr: learning rate of the sample weights.
        student_lr: learning rate of the student's direct outer step; None follows a tenth of the current inner rate.
        labels: what the outer objective sees: "pseudo" masks, or nothing but "points" (a target at the point, silence
            far from all, no word on what lies between).
    """

    hypergradient: Annotated[str, OneOf(HYPERGRADIENTS)] = "one-step-unrolled"
    every: Annotated[int, Range(1)] = 5
    steps: Annotated[int, Range(1)] = 4
    lr: Annotated[float, Range(0)] = 0.05
    student_lr: Annotated[float | None, Range(0)] = None
    labels: Annotated[str, OneOf(("pseudo", "points"))] = "pseudo"

    def __post_init__(self) -> None:
        check(self)

    def problem(
        self,
        context: Context,
        settings: Settings,
        loss: Any,
        target: Target,
        weights: nn.Module,
        outer_module: nn.Module | None = None,
        further: Sequence[dict[str, Any]] = (),
    ) -> OuterProblem:
        """The outer problem over sample weights, further groups of outer variables, and the student directly.

        Args:
            context: of the run.
            settings: the run's.
            loss: the outer objective on pseudo-masks.
            target: its pseudo-masks.
            weights: module of sample weights.
            outer_module: holds all outer variables, where there are more than the weights.
            further: parameter groups beside the weights'.
        """
        student, samples = context.student, context.samples
        if self.labels == "points":
            loss, target = PointOuter(), lambda i: point_maps(samples[i].image.shape, samples[i].points)
        lr = settings.optimisation.lr
        shared = list(student.parameters())
        groups: list[dict[str, Any]] = [*further, {"params": shared, "lr": self._student_lr(lr)}]
        learned = list(weights.parameters())
        if learned:
            groups.insert(0, {"params": learned, "lr": self.lr, "weight_decay": 0.0})
        method = HYPERGRADIENTS[self.hypergradient](lr, student, weights if outer_module is None else outer_module)
        return OuterProblem(loss, target, method, groups, shared, self.every, self.steps)

    def _student_lr(self, lr: float) -> float:
        return STUDENT_RATE * lr if self.student_lr is None else self.student_lr

    def callbacks(self, outer: OuterProblem) -> list[Any]:
        """What keeps the student's outer rate in step with the inner one."""
        return [StudentRate(STUDENT_RATE, len(outer.parameter_groups) - 1)] if self.student_lr is None else []
