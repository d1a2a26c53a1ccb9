"""Diffuse to Detect (2026): masks by heat diffusion, whose numbers are learned, and learned sample weights.

What it is. Heat put in at a target's point spreads inside it and stops at its edges; where it stays above a threshold
is the pseudo-mask (`istd.labels.diffusion`). How fast it spreads (D0), how hard edges stop it (beta), what counts as
an edge (alpha) and how heat is mixed with a region around the point (rho) are four numbers. A small network of image
features gives every training image a weight. Both are outer variables: they are moved so that the detector, after a
training step on the masks they draw and the weights they give, does better on validation.

    inner:  sum_i w_i(v) l(z_i, y_i(t))           over the detector; y(t) the diffusion's soft masks, t its numbers
    outer:  sum_j l(z_j, y_j) on validation       over v and t by the hypergradient, and the detector directly

After every outer phase all training masks are drawn anew; those of validation stay as they started, because a
diffusion that redraws what it is judged by would judge itself. In a training crop a label is followed to first order
in t (`istd.labels.learned`), so the hypergradient reaches t through any augmentation.

Where it departs from paper and release, and why:

- The heat equation is solved on the pixel grid, implicit in time: stable for any numbers, differentiable, and the
  same twice. The release moves particles at random, unseeded (`labels.rule="diffusion-particles"`, seeded here), and
  tunes its numbers on a different, explicit model of the equation which is unstable at its own start values.
- Size and class of a target are not read from its true mask (`labels.leaks_mask_area=True`; every table marks it).
- The release has no hypergradient: a score of how output errors align between training and validation moves the
  weights. `outer.hypergradient="output-alignment"` is that score (`istd.weights.alignment`); the numbers of the
  diffusion then stay where they start.
- The weight network sees what can be computed from the image, not 16 quantities of the running detector, of which one
  was never released and three are zero where they are used.
- `outer.labels="points"` judges by nothing but the points: a target at each, silence far from all.
- DenseCRF is an option (`labels.crf=True`, extra `crf`); with it, as with areas, the numbers stay where they start.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from bilevel.reweighting import FeatureNetworkWeights
from istd.labels import DiffusedLabels, HeatDiffusion, LearnedLabels, Redrawing, StartMasks
from istd.labels.updates import Predictor
from istd.losses import SEGMENTATION_LOSSES
from istd.methods.base import METHODS, Context, Method, Parts
from istd.methods.outer import OuterSteps
from istd.objectives import BareOuter, LearnedSegmentation, Segmentation, WeightsAndLabels
from istd.schema import OneOf, Range
from istd.settings import Settings
from istd.weights.descriptors import describe_images


@dataclass(frozen=True)
class DiffuseToDetect(Settings):
    """Settings of diffuse-to-detect.

    Attributes:
        diffusion_lr: learning rate of the diffusion's numbers; 0 keeps them. Masks of another rule, of known areas or
            refined by the CRF are not a function of them, and stay.
        outer: the outer steps.
    """

    loss: Annotated[str, OneOf(SEGMENTATION_LOSSES)] = "soft-iou"
    labels: StartMasks = field(default_factory=lambda: StartMasks(rule="diffusion"))
    diffusion_lr: Annotated[float, Range(0)] = 0.02
    outer: OuterSteps = field(default_factory=OuterSteps)

    @property
    def draws(self) -> bool:
        """Whether the diffusion's numbers are outer variables, and labels are drawn anew as they move."""
        plain = not (self.labels.leaks_mask_area or self.labels.crf) and self.labels.train == "pseudo"
        return self.labels.rule == "diffusion" and plain and self.diffusion_lr > 0


def build(context: Context, settings: DiffuseToDetect) -> Parts:
    """A student on masks by diffusion; the diffusion's numbers and a network of weights are outer variables."""
    features = torch.from_numpy(describe_images([s.image for s in context.samples]))
    weights = FeatureNetworkWeights(features, seed=settings.seed).to(context.device)
    if settings.draws:
        return _drawing(context, settings, weights)
    labels = settings.labels.draw(context.samples, context.training, context.validation, admit_all=True)
    outer = settings.outer.problem(context, settings, BareOuter(settings.loss), labels.hard, weights)
    return Parts(
        context.student,
        Segmentation(settings.loss),
        labels,
        labels.hard,
        weights=weights,
        outer=outer,
        callbacks=lambda predict: settings.outer.callbacks(outer),
    )


def _drawing(context: Context, settings: DiffuseToDetect, weights: FeatureNetworkWeights) -> Parts:
    labels = DiffusedLabels(context.samples, HeatDiffusion())
    # Validation masks stay as they are: a diffusion that redraws what it is judged by would judge itself.
    labels.fix(context.validation, [labels.now.start[i] for i in context.validation])
    learned = LearnedLabels(labels.model)
    both = WeightsAndLabels(weights, learned).to(context.device)
    group: dict[str, Any] = {"params": list(learned.parameters()), "lr": settings.diffusion_lr, "weight_decay": 0.0}
    judge = BareOuter(settings.loss)
    outer = settings.outer.problem(context, settings, judge, labels.hard, weights, both, [group])

    def callbacks(predict: Predictor) -> list[Any]:
        return [*settings.outer.callbacks(outer), Redrawing(labels, learned)]

    return Parts(
        context.student,
        LearnedSegmentation(settings.loss),
        labels,
        labels.maps,
        weights=weights,
        outer_module=both,
        outer=outer,
        callbacks=callbacks,
    )


METHODS.register(
    "diffuse-to-detect",
    Method(
        "heat-diffusion masks; their numbers, and sample weights from a network of features, learned on validation",
        DiffuseToDetect,
        build,
        __doc__,
        fixed=("loss", "labels"),
    ),
)
