"""BatchNorm that trains on whatever batch there is.

A layer that sees a single value per channel (one image whose deepest map is 1x1: a batch of one, a small crop) has no
variance to normalise by; PyTorch refuses it. Its running statistics, which evaluation uses as well, take their place
for that pass and do not move.
"""

from typing import Any

from torch import Tensor, nn


class SingleValueBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, but for a single value per channel in training, which its running statistics normalise."""

    seen_single = False

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, C, H, W)`."""
        if self.training and x.numel() == x.shape[1]:
            self.seen_single = True
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def accept_single_values(network: nn.Module) -> None:
    """Let every BatchNorm layer of a network accept single values; parameters, buffers and names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            layer: Any = module
            layer.__class__ = SingleValueBatchNorm2d


def layers_with_single_values(network: nn.Module) -> int:
    """How many BatchNorm layers have met a single value per channel."""
    return sum(isinstance(m, SingleValueBatchNorm2d) and m.seen_single for m in network.modules())
