"""Learning with Semantic Priors (2026), and versions of it that lack one part.

What it is. A student network is trained from one point per target. Points are turned into pseudo-masks; a frozen
vision foundation model (VFM) looks at the same image, and SCAM turns its tokens into a scale and a shift of the
student's encoder features. The student with these modulated features is the teacher: it shares every weight of the
student, is trained together with it, and lets the pseudo-masks evolve. Images are clustered by their looks; every
cluster has a weight in the training loss, learned so that the student does well on the validation split's
pseudo-masks. At inference the VFM and SCAM are gone.

    inner:  sum_i w_c(i) [l(z_t, y) + 0.1 KD(z_t, z_s)]_i + 0.005 R        over student weights and SCAM
    outer:  sum_j [l(z_s, y) + KD(z_s, z_t)]_j on validation      over cluster logits, and student weights directly

with z_s and z_t the logits of student and teacher, l the segmentation loss, KD a distillation (temperature 4, the
other side detached) and R SCAM's gate penalty.

Where it departs from paper and release, and how to get the published value back:

- The published hypergradient has the wrong sign in its indirect part, takes the outer loss on a training batch for
  the inner one, and is drowned by the direct part that weighting the outer loss brings in. Here it is the exact
  derivative through one inner step, of an unweighted outer loss (`outer.hypergradient="rank-one-published"`,
  `teaching.weighted_outer=True`).
- The release trains the student through the teacher alone; here the bare path, which is deployed, learns beside it
  (published: `teaching.student_loss_weight=0`), and the teacher may see a share of each batch
  (`teaching.teacher_share=1`).
- Start masks come from the half-maximum rule instead of Canny contours (`labels.rule="canny"`): 77 % IoU on SIRST-v1's
  training and validation images instead of 28 % (`benchmarks/pseudo_masks.py`). What evolution never removes are the
  points, not all pixels whose label is 1 (`evolution.anchors="ones"`), and labels are not rounded to 8 bits
  (`evolution.stored="uint8"`); a large target can be confirmed (`evolution.cap=inf`, `evolution.relative=False`);
  fewer false components admit a hard image (`admission.max_false_components=5`); labels stay in the last fifth of the
  schedule (`updates.until=1`).
- The number of clusters follows the validation split (`clusters.count=256`), they are fitted without test images
  (`clusters.transductive=True`), and may share what they learn (`clusters.sharing`).
- The VFM sees the whole image once and its tokens are cached (`vfm.view="crop"`); it stays in eval mode; every
  block's tokens are normed (`vfm.tokens="published"`); SCAM starts as the identity (`scam.start="random"`); BatchNorm
  keeps separate statistics for modulated features (`teaching.share_batch_norm=True`).
- The checkpoint is chosen on validation (`schedule.select_on="test"`), of averaged weights
  (`optimisation.ema_decay=0`).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from torch import nn

from bilevel.reweighting import UniformWeights
from istd.labels.updates import Predictor
from istd.methods.base import METHODS, Context, Method, Parts
from istd.methods.evolving import Evolving, evolving_parts
from istd.methods.outer import OuterSteps
from istd.objectives import BareOuter, Segmentation, StudentOuter, TeacherInner
from istd.schema import OneOf, Range, check
from istd.students import stages_of
from istd.teacher import SCAM, VFM, SpatialSCAM, Teacher, Vision
from istd.weights import ImageClusters

STRENGTHS = {"mlcl": 0.55}  # SCAM strength per student in the release; that of ALCL-Net serves the others
STRENGTH = 0.12


@dataclass(frozen=True)
class Modulation:
    """SCAM, through which the VFM speaks to the student's features.

    Attributes:
        place: "pooled": one modulation for the whole image (published), or "spatial": one for every place, which needs
            tokens that lie where the features lie (`vfm.view` "aligned" or "crop"). The next four options are those of
            the pooled form.
        strength: of the modulation; None takes the student's own (0.12 for ALCL-Net, 0.55 for MLCL-Net).
        fusion: over the VFM's depths: "soft" or "last" (the last depth alone).
        pooling: over tokens: "attention" or "mean".
        stages: which encoder stages are modulated: "all" or "last".
        injection: "affine" or "concat".
        start: "identity", or (published) "random".
        gate_weight: weight of the gate penalty in the inner loss; 0 leaves it out.
    """

    place: Annotated[str, OneOf(("pooled", "spatial"))] = "pooled"
    strength: Annotated[float | None, Range(0)] = None
    fusion: Annotated[str, OneOf(("soft", "last"))] = "soft"
    pooling: Annotated[str, OneOf(("attention", "mean"))] = "attention"
    stages: Annotated[str, OneOf(("all", "last"))] = "all"
    injection: Annotated[str, OneOf(("affine", "concat"))] = "affine"
    start: Annotated[str, OneOf(("identity", "random"))] = "identity"
    gate_weight: Annotated[float, Range(0)] = 5e-3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Teaching:
    """How teacher and student are trained together.

    Attributes:
        student_loss_weight: weight of the student's own loss beside the teacher's; published 0.
        teacher_share: share of every batch that passes through the teacher as well; published 1.
        distillation_weight: weight of the distillation from student to teacher in the inner loss; published 0.1.
        share_batch_norm: let teacher and student update one set of BatchNorm statistics, as published.
        weighted_outer: weight the outer loss by the learned weights, as published.
    """

    student_loss_weight: Annotated[float, Range(0)] = 1.0
    teacher_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    distillation_weight: Annotated[float, Range(0)] = 0.1
    share_batch_norm: bool = False
    weighted_outer: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SemanticPriors(Evolving):
    """Settings of semantic-priors.

    Attributes:
        vfm: the frozen vision foundation model.
        scam: how it modulates the student's features.
        teaching: how teacher and student are trained together.
        clusters: of images that share a weight.
        outer: the outer steps.
    """

    vfm: VFM = field(default_factory=VFM)
    scam: Modulation = field(default_factory=Modulation)
    teaching: Teaching = field(default_factory=Teaching)
    clusters: ImageClusters = field(default_factory=ImageClusters)
    outer: OuterSteps = field(default_factory=OuterSteps)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scam.place == "spatial" and not self.vfm.spatial:
            raise ValueError("`scam.place` 'spatial' needs `vfm.view` 'aligned' or 'crop', got 'image'.")


def build(
    context: Context,
    settings: SemanticPriors,
    teacher: bool = True,
    evolves: bool = True,
    clustered: bool = True,
    outer: bool = True,
) -> Parts:
    """The parts of semantic-priors, or of a version that lacks one.

    Args:
        context: of the run.
        settings: the run's.
        teacher: train through a VFM and SCAM.
        evolves: let labels follow predictions.
        clustered: learn a weight for each cluster of images.
        outer: make outer steps.
    """
    samples = context.samples
    labels, evolution = evolving_parts(context, settings, evolves)
    vision: Vision | None = None
    network: nn.Module = context.student
    inner: Any = Segmentation(settings.loss)
    judge: Any = BareOuter(settings.loss)
    if teacher:
        vision = context.see(settings.vfm)
        network = _teacher(context, settings, vision)
        inner, judge = _objectives(settings)
    weights: nn.Module = UniformWeights()
    if clustered:
        tokens = None if vision is None else vision.descriptors
        n = len(context.validation)
        weights = settings.clusters.weights(samples, n, context.dataset.test, tokens, settings.seed)
    weights = weights.to(context.device)
    problem = settings.outer.problem(context, settings, judge, labels.hard, weights) if outer else None

    def callbacks(predict: Predictor) -> list[Any]:
        return [*(settings.outer.callbacks(problem) if problem else []), *evolution(predict)]

    return Parts(
        network, inner, labels, labels.hard, weights=weights, outer=problem, callbacks=callbacks, vision=vision
    )


def _teacher(context: Context, settings: SemanticPriors, vision: Vision) -> Teacher:
    s, vfm, channels = settings.scam, vision.model, [stage.channels for stage in stages_of(context.student)]
    strength = STRENGTHS.get(settings.student, STRENGTH) if s.strength is None else s.strength
    scam: SCAM | SpatialSCAM
    if s.place == "spatial":
        scam = SpatialSCAM(vfm.depth, vfm.dim, channels, strength=strength)
    else:
        options: dict[str, Any] = {
            "fusion": s.fusion,
            "pooling": s.pooling,
            "stages": s.stages,
            "injection": s.injection,
        }
        scam = SCAM(vfm.depth, vfm.dim, channels, strength=strength, start=s.start, **options)
    return Teacher(context.student, scam, settings.teaching.share_batch_norm).to(context.device)


def _objectives(settings: SemanticPriors) -> tuple[TeacherInner, StudentOuter]:
    t = settings.teaching
    inner = TeacherInner(
        settings.loss,
        distillation_weight=t.distillation_weight,
        gate_weight=settings.scam.gate_weight,
        student_loss_weight=t.student_loss_weight,
        teacher_share=t.teacher_share,
    )
    return inner, StudentOuter(settings.loss, weighted=t.weighted_outer)


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "semantic-priors": (
        "SCAM teacher on the student's weights, label evolution, cluster weights learned on validation",
        {},
    ),
    "no-vfm": ("semantic-priors without VFM and SCAM: the student evolves its own labels", {"teacher": False}),
    "no-bilevel": (
        "semantic-priors without outer steps: uniform weights, no feedback",
        {"clustered": False, "outer": False},
    ),
    "uniform-weights": ("semantic-priors with outer steps on the student alone", {"clustered": False}),
    "no-evolution": ("semantic-priors on its start masks", {"evolves": False}),
}
"""The method, and what is left of it without one of its parts."""

for _name, (_summary, _parts) in ROWS.items():
    METHODS.register(_name, Method(_summary, SemanticPriors, partial(build, **_parts), __doc__))
