"""FDEP (2025): a frozen vision model fused in space, and a light branch that learns beside it.

What it is. Four SAMF modules in series at the bottleneck fuse the deepest feature map with token maps of a frozen
VFM: each splits the channels, multiplies one half by a map made of the tokens, adds one to the other half, and joins
both with a residual. The main branch is encoder, SAMF, decoder; the light branch the same encoder and decoder without
SAMF. Both are trained together with the same labels (CO-ISD): encoded once, decoded twice, two losses, one backward
pass. Only the light branch is deployed, at no extra cost.

    loss:  l(z_main, y) + l(z_light, y)

Where it departs from the paper, of which figure and abstract are public and no code is:

- The paper trains on true masks (`train_labels="true"`); by default this row gets pseudo-masks from points, like all
  others, so that rows can be compared.
- Kernels, norms, token depths and the resizing are not stated. Here the tokens of four evenly spaced depths pass 1x1
  convolutions and are resized to the feature map; the convolutions after both paths start at zero, so that the module
  is the identity before training (raw products of tokens depend on their scale).
- Encoder features are the same in both branches, so they are computed once; BatchNorm of the decoder keeps separate
  statistics for both (`share_batch_norm=True`).
- Fusion in space needs tokens that lie where the features lie: the VFM sees the training crop itself
  (`vfm_view="crop"`), whichever way it was turned and zoomed.
- The loss is PAL's, from the same group; the paper does not name one.
- The paper's HSE metric has no public formula: see `istd.metrics.HolisticScore` for one of our own.
"""

from istd.methods.registry import METHODS, Method

METHODS.register(
    "fdep",
    Method(
        "FDEP: SAMF at the bottleneck, main and light branch trained together (CO-ISD), the light one deployed",
        teacher="samf",
        about=__doc__,
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
