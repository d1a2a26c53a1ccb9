"""A recipe for weights of one's own: masked image modelling of a ViT on unlabelled infrared images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from istd.precision import has_bfloat16
from istd.teacher.vfm import FrozenVFM, load_vfm

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Pretraining:
    """`mean over hidden patches of |x - x^|`, x^ a linear map of the tokens that the ViT makes of the visible patches.

    Crops are scaled to mean zero and deviation one; hidden patches are grey in the input. What is learned is in the
    ViT: the linear map is thrown away.

    Attributes:
        steps: optimizer steps.
        batch_size: crops per step.
        size: side in pixels that crops are resized to.
        hidden: share of patches that are hidden.
        lr: peak learning rate of AdamW, reached after a twentieth of the steps, then annealed along a cosine.
        weight_decay: of AdamW.
        seed: of weights, crops and hidden patches.

    Source: Xie et al. (SimMIM, 2022): raw pixels, a linear head, L1 on hidden patches alone.
    """

    steps: int = 1500
    batch_size: int = 32
    size: int = 128
    hidden: float = 0.6
    lr: float = 5e-4
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.hidden < 1:
            raise ValueError(f"`hidden` must lie in (0, 1), got {self.hidden}.")


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` gives.

    Attributes:
        weights: state dict of the ViT, in timm's keys.
        losses: training loss of every step.
        held_out: loss on crops of held-out images; NaN without any.
        trivial: the same for a model that answers grey everywhere, which the loss must beat to have learned anything.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    held_out: float
    trivial: float


def pretrain(
    name: str,
    images: Sequence[Image],
    held_out: Sequence[Image] = (),
    recipe: Pretraining | None = None,
    device: torch.device | None = None,
    progress: bool = True,
) -> Pretrained:
    """Train a ViT from random weights on images alone.

    Args:
        name: timm name of a ViT.
        images: `(H, W)` in [0, 1], any sizes; no labels are used.
        held_out: further images, to see whether what was learned carries over.
        recipe: the settings.
        device: where to train; the forward pass runs in bfloat16 where the device has it.
        progress: show a progress bar.

    Raises:
        ValueError: without images, for an unknown model, or if it cannot take crops of `size`.
    """
    recipe, device = recipe or Pretraining(), device or torch.device("cpu")
    if not images:
        raise ValueError("`images` is empty: there is nothing to learn from.")
    torch.manual_seed(recipe.seed)
    vfm = load_vfm(name, random=True)
    if vfm.fixed_size is not None and tuple(vfm.fixed_size) != (recipe.size, recipe.size):
        raise ValueError(
            f"{name!r} takes images of {vfm.fixed_size[0]} px only; set `size` to that, got {recipe.size}."
        )
    if recipe.size % vfm.patch:
        raise ValueError(f"`size` must be a multiple of the patch ({vfm.patch} px) of {name!r}, got {recipe.size}.")
    model = _Masked(vfm).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    warmup = max(recipe.steps // 20, 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(recipe.steps - warmup, 1)),
        ],
        [warmup],
    )
    rng = np.random.default_rng(recipe.seed)
    losses: list[Tensor] = []
    for _ in tqdm(range(recipe.steps), f"pre-training {name}", unit="step", disable=not progress):
        crops, hidden = _batch(images, recipe, vfm.patch, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            loss = model(crops.to(device), hidden.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    found, trivial = _held_out_loss(model, held_out, recipe, device)
    weights = {key: value.detach().cpu().clone() for key, value in vfm.model.state_dict().items()}
    return Pretrained(weights, torch.stack(losses).tolist(), found, trivial)


class _Masked(nn.Module):
    """The ViT with its linear map to pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, vfm: FrozenVFM) -> None:
        super().__init__()
        self.vit, self.patch = vfm.model.requires_grad_(True), vfm.patch
        self.head = nn.Linear(vfm.dim, vfm.patch**2)
        self.register_buffer("mean", vfm.mean)
        self.register_buffer("std", vfm.std)

    def forward(self, crops: Tensor, hidden: Tensor) -> Tensor:
        """`(B, 1, S, S)` in [0, 1] and `(B, N)` bool -> mean absolute error over hidden patches."""
        mean, deviation = crops.mean((2, 3), keepdim=True), crops.std((2, 3), keepdim=True).clamp(min=1e-3)
        wanted = F.pixel_unshuffle((crops - mean) / deviation, self.patch).flatten(2).transpose(1, 2)
        side = crops.shape[-1] // self.patch
        grey = hidden.reshape(-1, 1, side, side).repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        seen = (torch.where(grey, mean, crops).expand(-1, 3, -1, -1) - self.mean) / self.std
        _, maps = self.vit.forward_intermediates(seen, indices=1, norm=True, output_fmt="NLC")
        error = (self.head(maps[-1]).float() - wanted).abs().mean(-1)
        loss: Tensor = (error * hidden).sum() / hidden.sum()
        return loss


def _batch(images: Sequence[Image], recipe: Pretraining, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Square crops of half to all of an image's shorter side, flipped and turned at random, and what is hidden."""
    crops = []
    for i in rng.integers(len(images), size=recipe.batch_size):
        image = images[i]
        side = max(int(min(image.shape) * rng.uniform(0.5, 1.0)), 1)
        top, left = (int(rng.integers(n - side + 1)) for n in image.shape)
        crop = np.rot90(image[top : top + side, left : left + side], int(rng.integers(4)))
        crop = crop[:, ::-1] if rng.uniform() < 0.5 else crop
        x = torch.from_numpy(np.ascontiguousarray(crop))[None, None]
        crops.append(F.interpolate(x, (recipe.size, recipe.size), mode="bilinear", align_corners=False, antialias=True))
    n = (recipe.size // patch) ** 2
    count = min(max(round(recipe.hidden * n), 1), n)
    order = rng.random((recipe.batch_size, n)).argsort(axis=1)
    return torch.cat(crops), torch.from_numpy(order < count)


@torch.no_grad()
def _held_out_loss(
    model: _Masked, images: Sequence[Image], recipe: Pretraining, device: torch.device
) -> tuple[float, float]:
    """Loss over four batches of held-out images, and that of grey."""
    if not images:
        return float("nan"), float("nan")
    rng = np.random.default_rng(recipe.seed + 1)
    batches = [_batch(images, recipe, model.patch, rng) for _ in range(4)]
    found = [float(model(crops.to(device), hidden.to(device))) for crops, hidden in batches]
    nn.init.zeros_(model.head.weight)  # the head is thrown away: without it the answer is grey
    nn.init.zeros_(model.head.bias)
    trivial = [float(model(crops.to(device), hidden.to(device))) for crops, hidden in batches]
    return float(np.mean(found)), float(np.mean(trivial))
