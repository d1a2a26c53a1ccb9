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
  same twice. The release moves particles at random, unseeded (`initial="diffusion-particles"`, seeded here), and
  tunes its numbers on a different, explicit model of the equation which is unstable at its own start values.
- Size and class of a target are not read from its true mask (`leaks_mask_area=True`; every table marks it).
- The release has no hypergradient: a score of how output errors align between training and validation moves the
  weights. `variant="published"` is that score (`istd.alignment`); the numbers of the diffusion then stay where they
  start.
- The weight network sees what can be computed from the image, not 16 quantities of the running detector, of which one
  was never released and three are zero where they are used.
- `outer_labels="points"` judges by nothing but the points: a target at each, silence far from all.
- DenseCRF is an option (`crf=True`, extra `crf`); with it, as with areas, the numbers stay where they start.
"""

from istd.methods.registry import METHODS, Method

METHODS.register(
    "diffuse-to-detect",
    Method(
        "heat-diffusion masks; their numbers, and sample weights from a network of features, learned on validation",
        weights="network",
        outer=True,
        draws=True,
        about=__doc__,
        settings={"initial": "diffusion", "loss": "soft-iou"},
    ),
)
