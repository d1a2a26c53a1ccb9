"""Learning how pseudo-masks are drawn: the four numbers of a heat diffusion as outer variables.

    python examples/learned_diffusion.py

Synthetic infrared scenes with one point per target. Heat diffuses from each point and is cut into a pseudo-mask; a
small network learns from these masks. The diffusion starts with wrong numbers (masks much too small). 24 targets carry
a trusted mask: the outer objective is the network's loss on them, and its hypergradient runs through the network's
training step into the diffusion. Printed: the IoU of the pseudo-masks against the hidden truth, before and after.
"""

import numpy as np
import torch
from torch import Tensor, nn

from bilevel import BilevelTrainer, Schedule, Unrolled, sgd
from istd.data.scenes import synthetic_dataset
from istd.labels import HeatDiffusion
from istd.labels.diffusion import cut_windows
from istd.labels.initial import HalfMaximum
from istd.losses import bce_and_soft_iou

HALF, TRUSTED, WRONG = 12, 24, {"stopping": 8.0, "mixing": 0.75}
SHARPNESS = 20.0  # slope of the soft training target at the mask's border
LR = 0.5


def windows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Contrasts, regions and true masks around all targets of some scenes."""
    parts = []
    for sample in synthetic_dataset(60, 1, 1, seed=seed).train:
        found = cut_windows(sample.image, sample.points, HALF, HalfMaximum())
        truth = np.pad(sample.truth(), HALF)
        for i in np.flatnonzero(found.accepted > 0):
            row, col = found.peaks[i]
            mask = truth[row : row + 2 * HALF + 1, col : col + 2 * HALF + 1]
            parts.append((found.contrast[i], found.region[i], mask))
    contrast, region, mask = (torch.from_numpy(np.stack(x)).float() for x in zip(*parts, strict=True))
    return contrast, region, mask


def iou(diffusion: HeatDiffusion, contrast: Tensor, region: Tensor, truth: Tensor) -> float:
    """Of all pseudo-masks together, in percent."""
    with torch.no_grad():
        mask, truth = diffusion(contrast, region) >= 0.5, truth > 0.5
    return 100 * float((mask & truth).sum() / (mask | truth).sum())


def learn(seed: int = 0, epochs: int = 30) -> tuple[float, float, HeatDiffusion]:
    """IoU before and after, and the diffusion that was learned."""
    contrast, region, truth = windows(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
    )
    diffusion = HeatDiffusion(**WRONG)
    order = torch.randperm(len(contrast))
    trusted, rest = order[:TRUSTED], order[TRUSTED:]
    before = iou(diffusion, contrast[rest], region[rest], truth[rest])

    def inner_loss(net: nn.Module, heat: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        c, s = batch
        target = torch.sigmoid(SHARPNESS * (heat(c, s) - 0.5))
        return bce_and_soft_iou(net(c[:, None]), target[:, None]).mean()

    def outer_loss(net: nn.Module, heat: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        c, mask = batch
        return bce_and_soft_iou(net(c[:, None]), mask[:, None]).mean()

    trainer = BilevelTrainer(
        network,
        diffusion,
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        inner_batches=[(contrast[i], region[i]) for i in rest.split(24)],
        outer_batches=[(contrast[trusted], truth[trusted])],
        inner_optimizer=torch.optim.SGD(network.parameters(), LR, momentum=0.9),
        outer_optimizer=torch.optim.Adam(diffusion.parameters(), 0.05),
        method=Unrolled(sgd(LR), steps=1),
        schedule=Schedule(every=1, steps=4),
        progress=False,
    )
    trainer.fit(epochs)
    return before, iou(diffusion, contrast[rest], region[rest], truth[rest]), diffusion


if __name__ == "__main__":
    for seed in (0, 1, 2):
        before, after, diffusion = learn(seed)
        text = ", ".join(f"{name} {value:.2f}" for name, value in diffusion.readable().items())
        print(f"seed {seed}: IoU of the pseudo-masks {before:.1f} -> {after:.1f} %   ({text})")
