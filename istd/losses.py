"""Pure losses on logits, one value per sample, so that sample weights multiply from outside.

Every function takes logits and targets of shape `(B, 1, H, W)` and returns `(B,)`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bilevel.registry import Registry

SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of -y log p - (1 - y) log(1 - p), p = sigmoid(logits)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2, 3))


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """`1 - (sum p y + 1) / (sum (p + y - p y) + 1)`, p = sigmoid(logits); the 1 keeps empty targets finite."""
    p = logits.sigmoid()
    intersection = (p * target).sum(dim=(1, 2, 3))
    union = (p + target - p * target).sum(dim=(1, 2, 3))
    return 1 - (intersection + 1) / (union + 1)


def bce_and_soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of `binary_cross_entropy` and `soft_iou`: calibrated background and overlap of small targets."""
    return binary_cross_entropy(logits, target) + soft_iou(logits, target)


def distillation(logits: Tensor, reference: Tensor, temperature: float = 4.0) -> Tensor:
    """Mean over pixels of (sigmoid(z / tau) - sigmoid(z_ref / tau))^2.

    Args:
        logits: z, the network that learns.
        reference: z_ref, the network that teaches; pass it detached.
        temperature: tau.

    Source: semantic-priors (2026), KD of equations 1 and 2 with tau = 4.
    """
    return ((logits / temperature).sigmoid() - (reference / temperature).sigmoid()).square().mean(dim=(1, 2, 3))


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of weights times losses, both `(B,)`."""
    return torch.mean(weights * losses)


SEGMENTATION_LOSSES: Registry[SegmentationLoss] = Registry("segmentation loss")
SEGMENTATION_LOSSES.register("bce", binary_cross_entropy)
SEGMENTATION_LOSSES.register("soft-iou", soft_iou)
SEGMENTATION_LOSSES.register("bce+soft-iou", bce_and_soft_iou)
