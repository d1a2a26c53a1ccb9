"""A recipe for weights of one's own: a ViT learns on unlabelled infrared images to tell them apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from istd.precision import has_bfloat16
from istd.teacher.vfm import FrozenViT, load_vfm

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Pretraining:
    """Contrastive learning: two crops of one image find each other among the crops of a batch.

    With z_i and z'_i the unit embeddings (mean patch token, then a two-layer map that is thrown away) of two crops of
    image i: `mean_i -log [exp(z_i.z'_i / t) / sum_j exp(z_i.z'_j / t)]`, and the same with the roles exchanged.

    A mean token that knows its scene is what SCAM asks of a vision foundation model.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step, two crops of each.
        size: side in pixels that crops are resized to.
        temperature: t.
        lr: peak learning rate of AdamW, reached after a twentieth of the steps, then annealed along a cosine.
        weight_decay: of AdamW.
        seed: of weights and crops.

    Source: Chen et al. (SimCLR, 2020), equation 1, without negatives from the own view.
    """

    steps: int = 400
    batch_size: int = 32
    size: int = 128
    temperature: float = 0.2
    lr: float = 3e-4
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` gives.

    Attributes:
        weights: state dict of the ViT, in timm's keys.
        losses: training loss of every step.
        found: share of held-out images whose second crop is nearest to their first by mean token; NaN without any.
        found_before: the same with the random weights that training started from.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    found: float
    found_before: float


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
        ValueError: for fewer than two images, an unknown model, or one that cannot take crops of `size`.
    """
    recipe, device = recipe or Pretraining(), device or torch.device("cpu")
    if len(images) < 2:
        raise ValueError(f"`images` must hold at least two to tell apart, got {len(images)}.")
    torch.manual_seed(recipe.seed)
    vfm = load_vfm(name, random=True)
    if not isinstance(vfm, FrozenViT):
        raise ValueError(f"`vfm` {name!r} is not a vision transformer; this recipe trains their tokens.")
    if vfm.fixed_size is not None and tuple(vfm.fixed_size) != (recipe.size, recipe.size):
        raise ValueError(
            f"{name!r} takes images of {vfm.fixed_size[0]} px only; set `size` to that, got {recipe.size}."
        )
    if recipe.size % vfm.patch:
        raise ValueError(f"`size` must be a multiple of the patch ({vfm.patch} px) of {name!r}, got {recipe.size}.")
    model = _Embedding(vfm).to(device)
    before = _retrieval(model, held_out, recipe, device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
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
        chosen = rng.permutation(len(images))[: recipe.batch_size]
        views = torch.cat([_crops([images[i] for i in chosen], recipe.size, rng) for _ in range(2)]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            embedded = model(views)
        one, other = F.normalize(embedded.float(), dim=1).chunk(2)
        alike, own = one @ other.T / recipe.temperature, torch.arange(len(chosen), device=device)
        loss = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    weights = {key: value.detach().cpu().clone() for key, value in vfm.model.state_dict().items()}
    return Pretrained(weights, torch.stack(losses).tolist(), _retrieval(model, held_out, recipe, device), before)


class _Embedding(nn.Module):
    """The ViT with its map to the space where crops are compared."""

    mean: Tensor
    std: Tensor

    def __init__(self, vfm: FrozenViT) -> None:
        super().__init__()
        self.vit, width = vfm.model.requires_grad_(True), vfm.widths[-1]
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64))
        self.register_buffer("mean", vfm.mean)
        self.register_buffer("std", vfm.std)

    def token(self, crops: Tensor) -> Tensor:
        """`(B, 1, S, S)` in [0, 1] -> `(B, D)` mean patch token of the last block."""
        x = (crops.expand(-1, 3, -1, -1) - self.mean) / self.std
        _, maps = self.vit.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC")
        mean: Tensor = maps[-1].mean(1)
        return mean

    def forward(self, crops: Tensor) -> Tensor:
        """`(B, 64)` embeddings."""
        out: Tensor = self.head(self.token(crops))
        return out


def _crops(images: Sequence[Image], size: int, rng: np.random.Generator) -> Tensor:
    """A square of half to all of each image's shorter side, turned, flipped, its contrast and brightness changed."""
    crops = []
    for image in images:
        side = max(int(min(image.shape) * rng.uniform(0.5, 1.0)), 1)
        top, left = (int(rng.integers(n - side + 1)) for n in image.shape)
        crop = np.rot90(image[top : top + side, left : left + side], int(rng.integers(4)))
        crop = crop[:, ::-1] if rng.uniform() < 0.5 else crop
        mean = crop.mean()
        crop = (crop - mean) * np.float32(1.5 ** rng.uniform(-1, 1)) + mean + np.float32(rng.normal(0, 0.05))
        x = torch.from_numpy(np.ascontiguousarray(crop))[None, None]
        crops.append(F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True))
    return torch.cat(crops).clamp(0, 1)


@torch.no_grad()
def _retrieval(model: _Embedding, images: Sequence[Image], recipe: Pretraining, device: torch.device) -> float:
    """Share of images whose second crop has the nearest mean token (cosine, centred) to that of their first."""
    if len(images) < 2:
        return float("nan")
    rng = np.random.default_rng(recipe.seed + 1)
    one, other = (model.token(_crops(images, recipe.size, rng).to(device)) for _ in range(2))
    middle = torch.cat([one, other]).mean(0)
    alike = F.normalize(one - middle, dim=1) @ F.normalize(other - middle, dim=1).T
    return float((alike.argmax(1) == torch.arange(len(images), device=device)).double().mean())
