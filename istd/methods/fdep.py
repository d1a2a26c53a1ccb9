"""FDEP (2025): a frozen vision model fused in space, and a light branch that learns beside it.

What it is. Four SAMF modules in series at the bottleneck fuse the deepest feature map with token maps of a frozen
VFM: each splits the channels, multiplies one half by a map made of the tokens, adds one to the other half, and joins
both with a residual. The main branch is encoder, SAMF, decoder; the light branch the same encoder and decoder without
SAMF. Both are trained together with the same labels (CO-ISD): encoded once, decoded twice, two losses, one backward
pass. Only the light branch is deployed, at no extra cost.

    loss:  l(z_main, y) + l(z_light, y)

Where it departs from the paper, of which figure and abstract are public and no code is:

- The paper trains on true masks (`labels.train="true"`); by default this row gets pseudo-masks from points, like all
  others, so that rows can be compared.
- Kernels, norms, token depths and the resizing are not stated. Here the tokens of four evenly spaced depths pass 1x1
  convolutions and are resized to the feature map; the convolutions after both paths start at zero, so that the module
  is the identity before training (raw products of tokens depend on their scale).
- Encoder features are the same in both branches, so they are computed once; BatchNorm of the decoder keeps separate
  statistics for both (`share_batch_norm=True`).
- Fusion in space needs tokens that lie where the features lie: the VFM sees the training crop itself
  (`vfm.view="crop"`), whichever way it was turned and zoomed.
- The loss is PAL's, from the same group; the paper does not name one.
- The paper's HSE metric has no public formula: see `istd.metrics.HolisticScore` for one of our own.
"""

from dataclasses import dataclass, field
from typing import Annotated

from istd.losses import SEGMENTATION_LOSSES
from istd.methods.base import METHODS, Context, Method, Parts
from istd.objectives import TeacherInner
from istd.schema import OneOf
from istd.settings import Settings
from istd.students import stages_of
from istd.teacher import SAMF, VFM, Teacher


@dataclass(frozen=True)
class FDEP(Settings):
    """Settings of FDEP.

    Attributes:
        vfm: the frozen vision foundation model.
        share_batch_norm: let both branches update one set of BatchNorm statistics.
    """

    loss: Annotated[str, OneOf(SEGMENTATION_LOSSES)] = "edge-ohem"
    vfm: VFM = field(default_factory=lambda: VFM(view="crop"))
    share_batch_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vfm.spatial:
            raise ValueError(
                "SAMF fuses in space: `vfm.view` must be 'crop' or 'aligned', so that tokens and features align."
            )


def build(context: Context, settings: FDEP) -> Parts:
    """A student and its main branch with SAMF, trained side by side."""
    labels = settings.labels.draw(context.samples, context.training, context.validation, admit_all=True)
    vision = context.see(settings.vfm)
    channels = [stage.channels for stage in stages_of(context.student)]
    adapter = SAMF(vision.model.depth, vision.model.dim, channels)
    teacher = Teacher(context.student, adapter, settings.share_batch_norm).to(context.device)
    inner = TeacherInner(settings.loss, distillation_weight=0.0)
    return Parts(teacher, inner, labels, labels.hard, vision=vision)


METHODS.register(
    "fdep",
    Method(
        "FDEP: SAMF at the bottleneck, main and light branch trained together (CO-ISD), the light one deployed",
        FDEP,
        build,
        __doc__,
        fixed=("loss", "share_batch_norm"),
    ),
)
