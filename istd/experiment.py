"""From a frozen config and a dataset to a trained, evaluated student: the single place of assembly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bilevel import BilevelTrainer, HypergradientMethod, Schedule
from bilevel.reweighting import FeatureNetworkWeights, UniformWeights
from istd.alignment import OutputAlignment
from istd.batchnorm import accept_single_values
from istd.clusters import cluster_count, cluster_weights
from istd.config import Config
from istd.data.crops import Augmentation, CropLoader, Normalisation
from istd.data.layouts import Dataset, Sample
from istd.descriptors import describe_images
from istd.hooks import Averaging, LabelUpdates, Redrawing, Selection, SharedRate
from istd.labels import (
    INITIAL_MASKS,
    AreaPrior,
    DiffusedMasks,
    HardSampleAdmission,
    HeatDiffusion,
    InitialMask,
    InitialRule,
    LabelEvolution,
    LearnedLabels,
    PseudoMasks,
    point_maps,
    with_crf,
)
from istd.methods import METHODS, hypergradient_variant
from istd.metrics import evaluate_masks
from istd.objectives import (
    BareOuter,
    LearnedSegmentation,
    PointOuter,
    Segmentation,
    StudentOuter,
    TeacherInner,
    WeightsAndLabels,
)
from istd.padding import stride_of
from istd.precision import has_bfloat16
from istd.predict import predict
from istd.students import create_student, repeat_channels, stages_of
from istd.teacher import SAMF, SCAM, FrozenVFM, Teacher, cached_tokens, crop_tokens, image_tokens, load_vfm

STRENGTHS = {"mlcl": 0.55}  # SCAM strength per student in the release of semantic-priors; ALCL-Net's serves the others
STRENGTH = 0.12
ADMIT_UNTIL = 0.8  # share of the epochs after which no waiting image is admitted any more (PAL, 2025)


@dataclass
class Experiment:
    """One run: its data, its networks and the trainer that ties them together.

    Args:
        config: the run's configuration.
        dataset: three splits of samples.
        device: where to train.
        checkpoint: file for the checkpoint, or None.
        progress: show progress bars.
        hooks: further objects with methods of `bilevel.events.Hook`, called after the run's own.
        identity: plain data that a resumed run must share, such as `istd.identity.run_identity`.
    """

    config: Config
    dataset: Dataset
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Path | None = None
    progress: bool = True
    hooks: Sequence[Any] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, dataset = self.config, self.dataset
        self.method = METHODS[config.method]
        learns = config.labels_lr > 0 and not config.leaks_mask_area and not config.crf
        self.draws = self.method.draws and config.initial == "diffusion" and learns
        self.precision = config.precision if has_bfloat16(self.device) else "float32"
        torch.manual_seed(config.seed)
        self.samples: tuple[Sample, ...] = dataset.train + dataset.val
        self.training = np.arange(len(dataset.train))
        self.validation = np.arange(len(dataset.train), len(self.samples))
        self.labels = self._start_labels()
        self.normalisation = Normalisation.fit(dataset.train, config.normalise_per_image, config.channels)
        student = create_student(config.student, config.width)
        if config.channels != "repeat" and student.in_channels != 3:
            raise ValueError(
                f"`channels={config.channels!r}` gives three input channels, and {config.student!r} takes "
                f"{student.in_channels}; use `channels='repeat'`."
            )
        accept_single_values(student)
        # Channels-last convolutions are faster on CPUs and feed the tensor cores of GPUs.
        self.student: Any = student.to(self.device).to(memory_format=torch.channels_last)
        self.stride = stride_of(student)
        self.vfm: FrozenVFM | None = self._load_vfm() if self.method.teacher else None
        self.tokens = self.image_tokens(self.samples)
        self.network: nn.Module = self._teacher(self.vfm) if self.vfm is not None else self.student
        self.weights = self._sample_weights().to(self.device)
        self.outer: nn.Module = self.weights
        if isinstance(self.labels, DiffusedMasks):
            self.outer = WeightsAndLabels(self.weights, LearnedLabels(self.labels.model)).to(self.device)
        self.averaging = Averaging(self.network, config.averaging)
        self.selection = Selection(
            self.averaging,
            self._test_score if config.select_on == "test" else self._validation_score,
            config.evaluate_every,
            start=round(config.select_from * config.epochs),
        )
        self.trainer = self._trainer()

    def fit(self) -> None:
        """Train to the end (from the checkpoint, if the trainer has resumed one)."""
        self.trainer.fit(self.config.epochs)

    # --- parts -------------------------------------------------------------------------------------------------------

    def _start_labels(self) -> PseudoMasks:
        if self.method.truth or self.config.train_labels == "true":

            def copied(image: NDArray[np.float32], points: NDArray[np.int64], truth: NDArray[np.bool_]) -> InitialMask:
                return InitialMask(truth, np.ones(len(points), dtype=bool))

            labels = PseudoMasks(self.samples, self._with_truth(copied), admit_all=True)
            labels.fixed[:] = True
            return labels
        if self.draws:
            drawn = DiffusedMasks(self.samples, HeatDiffusion())
            # Validation masks stay as they are: a diffusion that redraws what it is judged by would judge itself.
            drawn.fix(self.validation, [drawn.start[i] for i in self.validation])
            return drawn
        rule = INITIAL_MASKS[self.config.initial]
        if self.config.crf:
            rule = with_crf(rule)
        if self.config.leaks_mask_area:
            rule = self._with_truth(AreaPrior(rule))
        labels = PseudoMasks(self.samples, rule, admit_all=not self.method.evolves)
        labels.admitted[self.validation] = True
        if self.config.validation_labels == "true":
            labels.fix(self.validation, [_truth(self.samples[i]) for i in self.validation])
        if not labels.admitted[self.training].any():
            labels.admitted[:] = True  # nothing to start from otherwise
        return labels

    def _with_truth(self, rule: Callable[..., InitialMask]) -> InitialRule:
        """A rule that also reads the true mask; it is called once for each sample, in their order."""
        samples = iter(self.samples)
        return lambda image, points: rule(image, points, _truth(next(samples)))

    def _load_vfm(self) -> FrozenVFM:
        c = self.config
        published = c.vfm_tokens == "published"
        vfm = load_vfm(c.vfm, c.vfm_weights, c.vfm_random, embedding=published, norm="last" if published else "all")
        return vfm.to(self.device)

    def _teacher(self, vfm: FrozenVFM) -> Teacher:
        c = self.config
        channels = [stage.channels for stage in stages_of(self.student)]
        if self.method.teacher == "samf":
            if c.vfm_view != "crop":
                raise ValueError("SAMF fuses in space: `vfm_view` must be 'crop', so that tokens and features align.")
            return Teacher(self.student, SAMF(vfm.depth, vfm.dim, channels), c.share_batch_norm).to(self.device)
        strength = STRENGTHS.get(c.student, STRENGTH) if c.scam_strength is None else c.scam_strength
        scam = SCAM(
            vfm.depth,
            vfm.dim,
            channels,
            strength=strength,
            fusion=c.scam_fusion,
            pooling=c.scam_pooling,
            stages=c.scam_stages,
            injection=c.scam_injection,
            start=c.scam_start,
        )
        return Teacher(self.student, scam, c.share_batch_norm).to(self.device)

    def _sample_weights(self) -> nn.Module:
        if self.method.weights == "uniform":
            return UniformWeights()
        if self.method.weights == "network":
            features = torch.from_numpy(describe_images([s.image for s in self.samples]))
            return FeatureNetworkWeights(features, seed=self.config.seed)
        c = self.config
        k = c.clusters or cluster_count(len(self.validation))
        further = self.dataset.test if c.transductive else ()
        if c.descriptors == "vfm":
            if self.tokens is None:
                raise ValueError(f"`descriptors` is 'vfm', but the method {c.method!r} has no VFM; use 'statistics'.")
            parts = [self.tokens, *([self.image_tokens(further)] if further else [])]
            rows = torch.cat([t[:, -1].float().mean(1) for t in parts if t is not None]).double().numpy()
        else:
            rows = describe_images([s.image for s in (*self.samples, *further)])
        return cluster_weights(rows, k, len(self.samples), c.cluster_sharing, c.seed)

    def _target(self, outer: bool) -> Callable[[int], NDArray[Any]]:
        """What the batches of the inner or the outer objective hold as their target."""
        if outer and self.config.outer_labels == "points":
            return lambda i: point_maps(self.samples[i].image.shape, self.samples[i].points)
        if isinstance(self.labels, DiffusedMasks):
            return self.labels.hard if outer else self.labels.maps
        return self.labels.values if self.method.soft else self.labels.hard

    def _loader(self, indices: NDArray[np.int64], seed: int, outer: bool = False) -> CropLoader:
        c = self.config
        tokens: Callable[[Tensor, Tensor], Tensor] | None = None
        if self.vfm is not None and self.tokens is not None:
            tokens = cached_tokens(self.tokens) if c.vfm_view == "image" else crop_tokens(self.vfm)
        return CropLoader(
            self.samples,
            self._target(outer),
            lambda: indices[self.labels.admitted[indices]],
            batch_size=c.batch_size,
            augmentation=Augmentation(c.crop, c.on_target, c.scale, c.gain, c.noise),
            normalisation=self.normalisation,
            tokens=tokens,
            seed=seed,
            device=self.device,
        )

    def _trainer(self) -> BilevelTrainer:
        c = self.config
        train, val = self._loader(self.training, 2 * c.seed), self._loader(self.validation, 2 * c.seed + 1, outer=True)
        optimizer = torch.optim.AdamW(self.network.parameters(), c.lr, weight_decay=c.weight_decay)
        scheduler = None
        if c.cosine:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * len(train), 0.01 * c.lr)
        hooks: list[Any] = [self.averaging]
        if self.method.evolves:
            start = max(round(c.evolve_from * c.epochs), 1)
            rules = self._evolution(), HardSampleAdmission(alarms=c.alarms)
            stop, admit_until = round(c.evolve_until * c.epochs), round(ADMIT_UNTIL * c.epochs)
            hooks.append(
                LabelUpdates(self.labels, self._averaged_teacher, *rules, start, c.evolve_every, stop, admit_until)
            )
        if isinstance(self.outer, WeightsAndLabels) and isinstance(self.labels, DiffusedMasks):
            hooks.append(Redrawing(self.labels, cast(LearnedLabels, self.outer.labels)))
        hooks += [self.selection, *self.hooks]
        common: dict[str, Any] = {
            "inner_batches": train,
            "inner_optimizer": optimizer,
            "inner_scheduler": scheduler,
            "callbacks": hooks,
            "state": {"labels": self.labels},
            "checkpoint": self.checkpoint,
            "config": c.as_dict() | dict(self.identity),
            "describe_batch": self._describe,
            "autocast": torch.bfloat16 if self.precision == "bfloat16" else None,
            "progress": self.progress,
        }
        taught = isinstance(self.network, Teacher)
        inner: Any = Segmentation(c.loss)
        outer: Any = BareOuter(c.loss)
        if taught:
            inner = TeacherInner(c.loss, c.inner_kd, c.scam_gate, c.student_loss, c.teacher_share)
            outer = StudentOuter(c.loss, weighted=c.weighted_outer)
        if self.draws:
            inner = LearnedSegmentation(c.loss)
        if c.outer_labels == "points":
            outer = PointOuter()
        learned = list(self.weights.parameters())
        shared = list(self.student.parameters()) if self.method.outer else []
        groups: list[dict[str, Any]] = []
        if learned:
            groups.append({"params": learned, "lr": c.outer_lr, "weight_decay": 0.0})
        if isinstance(self.outer, WeightsAndLabels):
            groups.append({"params": list(self.outer.labels.parameters()), "lr": c.labels_lr, "weight_decay": 0.0})
        if shared:
            groups.append({"params": shared, "lr": 0.1 * c.lr if c.shared_lr is None else c.shared_lr})
            if c.shared_lr is None:
                hooks.insert(0, SharedRate(0.1, group=len(groups) - 1))
        if not groups:
            return BilevelTrainer(self.network, self.outer, inner_loss=inner, **common)
        return BilevelTrainer(
            self.network,
            self.outer,
            inner_loss=inner,
            outer_loss=outer,
            outer_batches=val,
            outer_optimizer=torch.optim.AdamW(groups),
            method=self._hypergradient(),
            schedule=Schedule(every=c.bilevel_every, steps=c.bilevel_steps, start=c.bilevel_every),
            shared=shared,
            **common,
        )

    def _hypergradient(self) -> HypergradientMethod:
        c = self.config
        if self.method.weights == "network" and c.variant == "published":
            return OutputAlignment(self.student, self.outer)
        return hypergradient_variant(c.variant, c.lr)

    def _evolution(self) -> LabelEvolution:
        c = self.config
        return LabelEvolution(
            cap=c.evolve_cap,
            decay=c.evolve_decay,
            anchors=c.anchors,
            relative=c.evolve_relative,
            rule=c.evolve_rule,
            stored=c.evolve_stored,
        )

    def _describe(self, batch: Any) -> object:
        return _Names(self.samples, batch.samples)

    # --- predictions -------------------------------------------------------------------------------------------------

    def predict_student(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of the averaged student on one `(H, W)` image."""
        student = getattr(self.averaging.module, "student", self.averaging.module)
        return predict(
            lambda x: student(repeat_channels(x, student)), image, self.normalisation, self.stride, self.device
        )

    def predict_teacher(self, image: NDArray[np.float32], tokens: Tensor) -> NDArray[np.float32]:
        """Probabilities of the averaged teacher on one `(H, W)` image with its `(K, N, D)` tokens."""
        teacher: Any = self.averaging.module
        one = tokens[None].to(self.device).float()
        return predict(lambda x: teacher.teach(x, one), image, self.normalisation, self.stride, self.device)

    def _averaged_teacher(self, i: int) -> NDArray[np.float32]:
        if self.tokens is None:
            return self.predict_student(self.samples[i].image)
        return self.predict_teacher(self.samples[i].image, self.tokens[i])

    def _validation_score(self) -> dict[str, float]:
        """What point supervision has: agreement with the start masks of the validation images.

        The start masks, because they stay: evolved ones follow the very network that is scored.
        """
        pairs = [
            (self.predict_student(self.samples[i].image) > 0.5, self.labels.start[i]) for i in self.validation.tolist()
        ]
        found = evaluate_masks(pairs)
        return {"score": (found["IoU"] + found["nIoU"]) / 2} | found

    def _test_score(self) -> dict[str, float]:
        found = evaluate_masks(_truths(self.dataset.test, [self.predict_student(s.image) for s in self.dataset.test]))
        return {"score": found["IoU"]} | found

    def image_tokens(self, samples: Sequence[Sample]) -> Tensor | None:
        """Frozen features of whole images, `(n, K, N, D)`, or None for a method without a teacher."""
        if self.vfm is None:
            return None
        return image_tokens(self.vfm, [s.image for s in samples], self.config.vfm_size, self.device, self.progress)

    def load_best(self) -> None:
        """Put the selected weights into the averaged network."""
        self.averaging.module.load_state_dict(self.selection.best["weights"])


@dataclass(frozen=True)
class _Names:
    """Names a batch when asked; until then it costs no wait for the device."""

    samples: Sequence[Sample]
    indices: Tensor

    def __str__(self) -> str:
        return "images " + ", ".join(self.samples[i].name for i in self.indices.tolist())


def _truth(sample: Sample) -> NDArray[np.bool_]:
    truth = sample.truth()
    if truth is None:
        raise ValueError(f"This configuration trains on true masks, but image {sample.name!r} has none.")
    return truth


def _truths(
    samples: Sequence[Sample], predictions: Sequence[NDArray[np.float32]]
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    pairs = []
    for sample, prediction in zip(samples, predictions, strict=True):
        truth = sample.truth()
        assert truth is not None
        pairs.append((prediction > 0.5, truth))
    return pairs
