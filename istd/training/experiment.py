"""From frozen settings and a dataset to a trainer: data, what the method builds, and the trainer that ties them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bilevel import BilevelTrainer, Schedule
from istd.batchnorm import accept_single_values
from istd.data.crops import Augmentation, BatchNames, CropLoader
from istd.data.dataset import Dataset
from istd.data.normalisation import Normalisation
from istd.inference.padding import stride_of
from istd.inference.predict import predict
from istd.methods import METHODS, Context
from istd.precision import has_bfloat16
from istd.settings import Settings
from istd.students import create_student, in_fast_format, start_weights
from istd.training.averaging import EMA
from istd.training.best_checkpoint import BestCheckpoint, validation_score


@dataclass
class Experiment:
    """One run: its data, the parts that its method has built, and the trainer.

    Args:
        settings: the run's.
        dataset: three splits of samples.
        device: where to train.
        checkpoint: file for the checkpoint, or None.
        progress: show progress bars.
        callbacks: further callbacks of the trainer, called after the run's own.
        identity: plain data that a resumed run must share, such as `istd.runs.identity.run_identity`.
    """

    settings: Settings
    dataset: Dataset
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Path | None = None
    progress: bool = True
    callbacks: Sequence[Any] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.settings
        torch.manual_seed(s.seed)
        self.precision = s.optimisation.precision if has_bfloat16(self.device) else "float32"
        self.normalisation = Normalisation.fit(self.dataset.train, s.data.normalise_per_image, s.data.channels)
        student = create_student(s.student, s.width)
        self.normalisation.check_channels(student.in_channels)
        self.student_start = start_weights(s.student, student, random=not s.pretrained)
        accept_single_values(student)
        computed = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.student: Any = in_fast_format(student.to(self.device), training=True, precision=computed)
        self.context = Context(self.dataset, self.student, self.device, self.progress)
        self.parts = METHODS[s.method].build(self.context, s)
        self.ema = EMA(self.parts.network, s.optimisation.ema_decay)
        score = validation_score(self, s.schedule.select_on)
        start = round(s.schedule.select_from * s.schedule.epochs)
        self.best = BestCheckpoint(self.ema, score, s.schedule.evaluate_every, start)
        self.trainer = self._trainer()

    def fit(self) -> None:
        """Train to the end (from the checkpoint, if the trainer has resumed one)."""
        self.trainer.fit(self.settings.schedule.epochs)

    def load_best(self) -> None:
        """Put the selected weights into the averaged network."""
        self.ema.module.load_state_dict(self.best.best["weights"])

    def predict_student(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of the averaged student on one `(H, W)` image."""
        return self._predict(self.ema.module.student, image)

    def predict_teacher(self, image: NDArray[np.float32], tokens: Tensor) -> NDArray[np.float32]:
        """Probabilities of the averaged teacher on one `(H, W)` image with its tokens (`Vision.whole`)."""
        return self._predict(lambda x: self.ema.module.teach(x, tokens), image)

    def _predict(self, network: Callable[[Tensor], Tensor], image: NDArray[np.float32]) -> NDArray[np.float32]:
        stride, channels = stride_of(self.student), self.student.in_channels
        return predict(network, image, self.normalisation, stride, self.device, channels)

    def _predict_labelled(self, i: int) -> NDArray[np.float32]:
        image, vision = self.context.samples[i].image, self.parts.vision
        return self.predict_student(image) if vision is None else self.predict_teacher(image, vision.whole(i))

    def _loader(self, indices: NDArray[np.int64], target: Callable[[int], NDArray[Any]], seed: int) -> CropLoader:
        c, labels, vision = self.settings.data, self.parts.labels, self.parts.vision
        return CropLoader(
            self.context.samples,
            target,
            lambda: indices[labels.now.admitted[indices]],
            batch_size=self.settings.optimisation.batch_size,
            augmentation=Augmentation(c.crop, c.on_target, c.scale, c.gain, c.noise),
            normalisation=self.normalisation,
            channels=self.student.in_channels,
            **({} if vision is None else vision.loader_arguments(c.crop)),
            seed=seed,
            device=self.device,
        )

    def _trainer(self) -> BilevelTrainer:
        s, o, parts = self.settings, self.settings.optimisation, self.parts
        train = self._loader(self.context.training, parts.target, 2 * s.seed)
        optimizer = torch.optim.AdamW(parts.network.parameters(), o.lr, weight_decay=o.weight_decay)
        scheduler = None
        if o.cosine:
            steps = s.schedule.epochs * len(train)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.01 * o.lr)
        outer: nn.Module = parts.weights if parts.outer_module is None else parts.outer_module
        return BilevelTrainer(
            parts.network,
            outer.to(self.device),
            inner_loss=parts.inner_loss,
            inner_batches=train,
            inner_optimizer=optimizer,
            inner_scheduler=scheduler,
            callbacks=[self.ema, *parts.callbacks(self._predict_labelled), self.best, *self.callbacks],
            state={"labels": parts.labels},
            checkpoint=self.checkpoint,
            config=s.flat() | dict(self.identity),
            describe_batch=lambda batch: BatchNames(self.context.samples, batch.index),
            autocast=torch.bfloat16 if self.precision == "bfloat16" else None,
            progress=self.progress,
            **self._outer_arguments(),
        )

    def _outer_arguments(self) -> dict[str, Any]:
        outer = self.parts.outer
        if outer is None:
            return {}
        return {
            "outer_loss": outer.loss,
            "outer_batches": self._loader(self.context.validation, outer.target, 2 * self.settings.seed + 1),
            "outer_optimizer": torch.optim.AdamW(outer.parameter_groups),
            "method": outer.hypergradient,
            "schedule": Schedule(every=outer.every, steps=outer.steps, start=outer.every),
            "shared": outer.shared,
        }
