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
  derivative through one inner step, of an unweighted outer loss (`variant="published"`, `weighted_outer=True`).
- The release trains the student through the teacher alone; here the bare path, which is deployed, learns beside it
  (`student_loss=0` is published), and the teacher may see a share of each batch (`teacher_share=1`).
- Start masks come from the half-maximum rule instead of Canny contours (`initial="canny"`): 77 % IoU on SIRST-v1's
  training and validation images instead of 28 % (`benchmarks/pseudo_masks.py`). What evolution never removes are the
  points, not all pixels whose label is 1 (`anchors="ones"`), and labels are not rounded to 8 bits
  (`evolve_stored="uint8"`); a large target can be confirmed (`evolve_cap=inf`, `evolve_relative=False`); fewer false
  alarms admit a hard image (`alarms=5`); labels stay in the last fifth of the schedule (`evolve_until=1`).
- The number of clusters follows the validation split (`clusters=256`), they are fitted without test images
  (`transductive=True`), and may share what they learn (`cluster_sharing`).
- The VFM sees the whole image once and its tokens are cached (`vfm_view="crop"`); it stays in eval mode; every
  block's tokens are normed (`vfm_tokens="published"`); SCAM starts as the identity (`scam_start="random"`); BatchNorm
  keeps separate statistics for modulated features (`share_batch_norm=True`).
- The checkpoint is chosen on validation (`select_on="test"`), of averaged weights (`averaging=0`).
"""

from istd.methods.registry import METHODS, Method

METHODS.register(
    "semantic-priors",
    Method(
        "SCAM teacher on the student's weights, label evolution, cluster weights learned on validation",
        teacher="scam",
        evolves=True,
        weights="cluster",
        outer=True,
        about=__doc__,
    ),
)
METHODS.register(
    "no-vfm",
    Method(
        "semantic-priors without VFM and SCAM: the student evolves its own labels",
        evolves=True,
        weights="cluster",
        outer=True,
        about=__doc__,
    ),
)
METHODS.register(
    "no-bilevel",
    Method(
        "semantic-priors without outer steps: uniform weights, no feedback",
        teacher="scam",
        evolves=True,
        about=__doc__,
    ),
)
METHODS.register(
    "uniform-weights",
    Method(
        "semantic-priors with outer steps on the student alone",
        teacher="scam",
        evolves=True,
        outer=True,
        about=__doc__,
    ),
)
METHODS.register(
    "no-evolution",
    Method(
        "semantic-priors on its start masks",
        teacher="scam",
        weights="cluster",
        outer=True,
        about=__doc__,
    ),
)
