"""Pure losses on logits, one value per sample, so that sample weights multiply from outside.

Every function takes logits and targets of shape `(B, 1, H, W)` and returns `(B,)`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bilevel.registry import Registry

SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of -y log p - (1 - y) log(1 - p), p = sigmoid(logits)."""
    return F.binary_cross_entropy_with_logits(_summable(logits), target, reduction="none").mean(dim=(1, 2, 3))


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """`1 - (sum p y + 1) / (sum (p + y - p y) + 1)`, p = sigmoid(logits); the 1 keeps empty targets finite."""
    p = _summable(logits).sigmoid()
    intersection = (p * target).sum(dim=(1, 2, 3))
    union = (p + target - p * target).sum(dim=(1, 2, 3))
    return 1 - (intersection + 1) / (union + 1)


def bce_and_soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of `binary_cross_entropy` and `soft_iou`: calibrated background and overlap of small targets."""
    return binary_cross_entropy(logits, target) + soft_iou(logits, target)


def edge_ohem(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, fourfold on the label's boundary, averaged over the harder half of the pixels.

    The boundary holds the label's pixels with a background pixel among their eight neighbours. Pixels whose loss is at
    least the image's median are kept (online hard example mining).

    Source: Yu et al. (PAL, 2025), released code.
    """
    loss = F.binary_cross_entropy_with_logits(_summable(logits), target, reduction="none")
    inside = -F.max_pool2d(-target, 3, stride=1, padding=1)
    loss = (loss * (1 + 3 * (target - inside))).flatten(1)
    kept = loss >= loss.detach().median(dim=1, keepdim=True).values
    return (loss * kept).sum(1) / kept.sum(1)


def soft_focal(logits: Tensor, target: Tensor) -> Tensor:
    """`sum [-(1-p)^2 y log p - p^2 (1-y)^4 log(1-p)] / max(1, #{y = 1})`, p = sigmoid(logits), y soft in [0, 1].

    The fourth power spares pixels that a soft label suspects.

    Source: Ying et al. (LESPS, 2023), released code.
    """
    z = _summable(logits)
    p = z.sigmoid()
    positive = -(1 - p).square() * target * F.logsigmoid(z)
    negative = -p.square() * (1 - target) ** 4 * F.logsigmoid(-z)
    return (positive + negative).sum(dim=(1, 2, 3)) / (target == 1).sum(dim=(1, 2, 3)).clamp(min=1)


def distillation(logits: Tensor, reference: Tensor, temperature: float = 4.0) -> Tensor:
    """Mean over pixels of (sigmoid(z / tau) - sigmoid(z_ref / tau))^2.

    Args:
        logits: z, the network that learns.
        reference: z_ref, the network that teaches; pass it detached.
        temperature: tau.

    Source: semantic-priors (2026), KD of equations 1 and 2 with tau = 4.
    """
    p, q = ((_summable(z) / temperature).sigmoid() for z in (logits, reference))
    return (p - q).square().mean(dim=(1, 2, 3))


def combined(terms: Sequence[tuple[float, str]]) -> SegmentationLoss:
    """`sum_k f_k l_k` of (factor f_k, registered name of l_k).

    Raises:
        ValueError: without terms, or for an unknown name (the message lists the known ones).
    """
    if not terms:
        raise ValueError("`terms` is empty; give at least one (factor, name of a segmentation loss).")
    losses = [(factor, SEGMENTATION_LOSSES[name]) for factor, name in terms]

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return torch.stack([factor * each(logits, target) for factor, each in losses]).sum(0)

    return loss


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of weights times losses, both `(B,)`."""
    return torch.mean(weights * losses)


def _summable(logits: Tensor) -> Tensor:
    """Autocast's bfloat16 keeps 8 bits, too few for a sum over the pixels of an image; wider types stay as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


SEGMENTATION_LOSSES: Registry[SegmentationLoss] = Registry("segmentation loss")
SEGMENTATION_LOSSES.register("bce", binary_cross_entropy)
SEGMENTATION_LOSSES.register("soft-iou", soft_iou)
SEGMENTATION_LOSSES.register("bce+soft-iou", bce_and_soft_iou)
SEGMENTATION_LOSSES.register("edge-ohem", edge_ohem)
SEGMENTATION_LOSSES.register("soft-focal", soft_focal)
