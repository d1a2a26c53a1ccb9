"""The frozen configuration of one run, its presets and its checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bilevel.registry import Registry
from istd.clusters import SHARINGS
from istd.labels import INITIAL_MASKS
from istd.labels.evolution import ANCHORS, RULES, STORED
from istd.losses import SEGMENTATION_LOSSES
from istd.methods import METHODS, VARIANTS
from istd.schema import Choices, Range, check_fields
from istd.students import STUDENTS

DEFAULT_VFM = "vit_small_plus_patch16_dinov3.lvd1689m"


CHOICES: dict[str, Choices] = {
    "method": METHODS,
    "student": STUDENTS,
    "precision": ("float32", "bfloat16"),
    "loss": SEGMENTATION_LOSSES,
    "channels": ("repeat", "contrast", "imagenet"),
    "initial": INITIAL_MASKS,
    "anchors": ANCHORS,
    "evolve_rule": RULES,
    "evolve_stored": STORED,
    "vfm_view": ("image", "crop"),
    "scam_fusion": ("soft", "last"),
    "scam_pooling": ("attention", "mean"),
    "scam_stages": ("all", "last"),
    "scam_injection": ("affine", "concat"),
    "scam_start": ("identity", "random"),
    "vfm_tokens": ("normed", "published"),
    "variant": VARIANTS,
    "descriptors": ("statistics", "vfm"),
    "cluster_sharing": ("none", *SHARINGS),
    "outer_labels": ("pseudo", "points"),
    "train_labels": ("pseudo", "true"),
    "validation_labels": ("pseudo", "true"),
    "select_on": ("val", "test"),
}
"""Fields with a fixed set of values."""

RANGES: dict[str, Range] = {
    "width": Range(0, 4, above=True),
    "seed": Range(0, 2**31 - 1),
    "epochs": Range(1),
    "batch_size": Range(1),
    "crop": Range(32, 8192),
    "lr": Range(0, above=True),
    "weight_decay": Range(0),
    "student_loss": Range(0),
    "teacher_share": Range(0, 1, above=True),
    "averaging": Range(0, 1, below=True),
    "scale": Range(1, 8),
    "gain": Range(1, 100),
    "noise": Range(0, 10),
    "on_target": Range(0, 1),
    "evolve_from": Range(0, 1),
    "evolve_every": Range(1),
    "evolve_until": Range(0, 1),
    "evolve_decay": Range(0, 1),
    "evolve_cap": Range(0, infinite=True),
    "alarms": Range(0),
    "vfm_size": Range(16, 8192),
    "scam_strength": Range(0),
    "scam_gate": Range(0),
    "clusters": Range(1),
    "bilevel_every": Range(1),
    "bilevel_steps": Range(1),
    "outer_lr": Range(0),
    "labels_lr": Range(0),
    "shared_lr": Range(0),
    "evaluate_every": Range(1),
    "inner_kd": Range(0),
    "select_from": Range(0, 1),
}
"""What every number may be."""

PERIODS = ("evolve_every", "bilevel_every", "evaluate_every")
"""Fields that count epochs, and so belong to a number of them."""


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on besides its data. Defaults are those of the `paper` preset.

    Attributes:
        method: row of `istd.methods.METHODS`.
        student: registry name of the student network.
        width: factor on the student's channels.
        preset: name of the preset that this started from.
        seed: seed of weights, crops and clusters.
        epochs: passes over the training pool.
        batch_size: images per step.
        crop: side of training crops in pixels.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        cosine: anneal the learning rate to 1 % of `lr` along a cosine.
        precision: of the inner steps, "float32" or "bfloat16" (autocast, where the device has it; hypergradients and
            evaluation stay in float32).
        loss: segmentation loss.
        student_loss: weight of the student's own loss beside the teacher's; published 0.
        teacher_share: share of every batch that passes through the teacher as well; published 1.
        averaging: decay of the moving average of weights that is evaluated and exported; 0 switches it off.
        scale: zoom augmentation (see `Augmentation`).
        gain: contrast augmentation.
        noise: noise augmentation.
        normalise_per_image: use each image's own mean and deviation instead of the training set's.
        channels: what the input channels hold: "repeat" (published), "contrast" or "imagenet" (see `Normalisation`).
        on_target: share of crops placed around a point.
        initial: rule that draws the start masks.
        leaks_mask_area: let the rule know the size class of each target, from its true mask, as the sources of
            diffuse-to-detect and MCLC do; more supervision than points, marked in every table.
        crf: refine the masks of "monte-carlo" and "diffusion" by a DenseCRF, as published (extra `crf`).
        evolve_from: label evolution starts after this share of the epochs (published: 0.2 of 300).
        evolve_until: share of the epochs after which labels stay; the releases let them evolve to the end (1).
        evolve_every: period of label updates in epochs.
        anchors: what label evolution never removes, "points" or (published) "ones", all pixels whose label is 1.
        evolve_rule: rule of label evolution, "pal" (semantic-priors' too) or "lesps".
        evolve_stored: how labels are kept between updates, "float32" or (published) "uint8".
        evolve_decay: factor per update on label pixels that no prediction confirms.
        evolve_relative: measure a prediction's confidence against its region's maximum; published False.
        evolve_cap: largest region size that raises its threshold, in units of L; published infinity.
        alarms: false components per point that hard-sample admission allows; published 5.
        vfm: timm name of the frozen teacher.
        vfm_weights: local weight file, or None for the hub.
        vfm_random: use random weights, labelled as such everywhere.
        vfm_view: "image" (whole image, features computed once) or "crop" (published).
        vfm_size: side that the VFM sees in the image view.
        vfm_tokens: "normed": every block's tokens pass the final norm, or "published": the embedding output is a map
            too, and the last block's tokens alone are normed.
        scam_strength: strength of the modulation; None takes the student's own (0.12 for ALCL-Net, 0.55 for MLCL-Net).
        scam_fusion: over the VFM's depths, "soft" or "last" (the last depth alone).
        scam_pooling: over tokens, "attention" or "mean".
        scam_stages: which encoder stages are modulated, "all" or "last".
        scam_injection: "affine" or "concat".
        scam_start: "identity", or (published) "random".
        scam_gate: weight of the gate penalty; 0 leaves it out.
        share_batch_norm: let teacher and student update one set of BatchNorm statistics, as published.
        variant: hypergradient of the sample weights: "implicit" (exact through one step), "gauss-newton", or
            "published" (semantic-priors' rank-one form, diffuse-to-detect's alignment of outputs).
        weighted_outer: weight the outer loss by the learned weights, as published.
        clusters: number of clusters, or None to scale it with the validation split.
        descriptors: what clusters are formed on, image "statistics" or the mean token of the "vfm".
        transductive: fit clusters on the (unlabelled) test images as well, as the published release does.
        cluster_sharing: what clusters learn from each other, "none", "nested" (clusters of clusters share a logit) or
            "smoothed" (neighbours share).
        bilevel_every: period of outer phases in epochs.
        bilevel_steps: outer steps per phase.
        outer_lr: learning rate of the cluster logits.
        labels_lr: learning rate of the numbers that labels are drawn with; 0 keeps them (diffuse-to-detect).
        outer_labels: what the outer objective sees, "pseudo" masks or nothing but "points" (a target at the point,
            silence far from all, no word on what lies between).
        shared_lr: learning rate of the student's direct outer step; None follows a tenth of the current inner rate.
        evaluate_every: period of validation in epochs.
        inner_kd: weight of the distillation from student to teacher in the inner loss; published 0.1.
        train_labels: what training sees on its images: their "pseudo" masks, or their "true" ones (full supervision).
        validation_labels: what the outer objective and the choice of a checkpoint see on validation images: their
            "pseudo" masks, or their "true" ones (for comparison; more supervision than points).
        select_from: share of the epochs after which checkpoints are candidates. A small validation split ranks them
            with much noise; before the learning rate has fallen, the lucky ones are worse than the last.
        select_on: "val", or "test" to reproduce the sources' choice on the test split.
    """

    method: str = "semantic-priors"
    student: str = "alcl"
    width: float = 1.0
    preset: str = "paper"
    seed: int = 0
    epochs: int = 300
    batch_size: int = 16
    crop: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    cosine: bool = True
    precision: str = "float32"
    loss: str = "bce+soft-iou"
    student_loss: float = 1.0
    teacher_share: float = 1.0
    averaging: float = 0.998
    scale: float = 1.0
    gain: float = 1.0
    noise: float = 0.0
    normalise_per_image: bool = False
    channels: str = "repeat"
    on_target: float = 0.7
    initial: str = "half-maximum"
    leaks_mask_area: bool = False
    crf: bool = False
    evolve_from: float = 0.2
    evolve_until: float = 0.8
    evolve_every: int = 5
    anchors: str = "points"
    evolve_rule: str = "pal"
    evolve_stored: str = "float32"
    evolve_decay: float = 0.97
    evolve_relative: bool = True
    evolve_cap: float = 1.0
    alarms: float = 1.0
    vfm: str = DEFAULT_VFM
    vfm_weights: str | None = None
    vfm_random: bool = False
    vfm_view: str = "image"
    vfm_size: int = 256
    vfm_tokens: str = "normed"
    scam_strength: float | None = None
    scam_fusion: str = "soft"
    scam_pooling: str = "attention"
    scam_stages: str = "all"
    scam_injection: str = "affine"
    scam_start: str = "identity"
    scam_gate: float = 5e-3
    share_batch_norm: bool = False
    variant: str = "implicit"
    weighted_outer: bool = False
    clusters: int | None = None
    descriptors: str = "statistics"
    transductive: bool = False
    cluster_sharing: str = "none"
    bilevel_every: int = 5
    bilevel_steps: int = 4
    outer_lr: float = 0.05
    labels_lr: float = 0.02
    outer_labels: str = "pseudo"
    shared_lr: float | None = None
    evaluate_every: int = 10
    inner_kd: float = 0.1
    train_labels: str = "pseudo"
    validation_labels: str = "pseudo"
    select_from: float = 0.7
    select_on: str = "val"

    def __post_init__(self) -> None:
        check_fields(self, RANGES, CHOICES)
        if self.crop % 32:
            raise ValueError(f"`crop` must be a positive multiple of 32, got {self.crop}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for files and comparisons."""
        return asdict(self)


PRESETS: Registry[Config] = Registry("preset")
PRESETS.register("paper", Config())
PRESETS.register(
    "cpu",
    replace(
        Config(),
        preset="cpu",
        width=0.5,
        epochs=140,
        batch_size=8,
        crop=128,
        lr=2e-3,
        precision="bfloat16",
        # Short schedules: a teacher that pulls on the shared weights as hard as the student slows the student down.
        student_loss=8.0,
        teacher_share=0.5,
        averaging=0.996,
        gain=1.6,
        noise=0.01,
        on_target=0.85,
        evolve_from=0.4,
        evolve_every=28,
        vfm_size=128,
        bilevel_every=28,
    ),
)
PRESETS.register(
    "smoke",
    replace(
        Config(),
        preset="smoke",
        width=0.5,
        epochs=48,
        batch_size=8,
        crop=64,
        lr=4e-3,
        teacher_share=0.5,
        scale=1.25,
        gain=1.3,
        evolve_from=0.5,
        evolve_every=6,
        vfm="vit_tiny_patch16_224",
        vfm_size=64,
        vfm_random=True,
        evaluate_every=6,
        averaging=0.95,
        bilevel_every=12,
    ),
)


def configure(preset: str, method: str | None = None, **changes: Any) -> Config:
    """The configuration of a method: its preset, what the method's source fixes, and what the caller changes.

    In another number of epochs than the preset's, periods that are not given themselves shrink or grow with it
    (`shortened`): a method whose period outlasted the run would never act.

    Args:
        preset: a key of `PRESETS`.
        method: a key of `METHODS`; None keeps the preset's.
        **changes: fields of `Config`; they win over the method's settings.

    Raises:
        ValueError: for an unknown preset or method, or an impossible value.
    """
    base = PRESETS[preset]
    name = method or base.method
    usual = replace(base, **{"method": name, **METHODS[name].settings})
    if "epochs" in changes:
        usual = shortened(usual, replace(usual, epochs=changes["epochs"]).epochs)
    return replace(usual, **changes)


def departures(config: Config) -> dict[str, Any]:
    """What a configuration changes in its preset and method: fields and values, without seed, network and VFM."""
    usual = replace(configure(config.preset, config.method, epochs=config.epochs), epochs=PRESETS[config.preset].epochs)
    named = {"seed", "student", "width", "vfm", "vfm_weights", "vfm_random"}  # every result names these anyway
    return {k: v for k, v in config.as_dict().items() if k not in named and v != getattr(usual, k)}


def shortened(config: Config, epochs: int) -> Config:
    """The same schedule in another number of epochs: periods, which count epochs, shrink (or grow) with it."""
    return replace(config, epochs=epochs, **scaled_periods(config.as_dict(), epochs))


def scaled_periods(schedule: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The periods of a schedule with its own number of `epochs`, for another number of them; each at least 1."""
    share = epochs / schedule["epochs"]
    return {p: max(round(share * schedule[p]), 1) for p in PERIODS if p in schedule}
