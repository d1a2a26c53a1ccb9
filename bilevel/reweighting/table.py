"""Weights from a table of logits: one per sample, per class or per cluster."""

import torch
from torch import Tensor, nn

from bilevel.reweighting.base import BOUND, bounded_weights


class TableWeights(nn.Module):
    """Weights `w = bounded(logits[group[i]])`: the outer variables are the logits, one per group.

    A group is whatever shares one weight: the sample itself, its class or its cluster. Memory is O(groups) for the
    variables, their gradients and moments, plus one integer per sample; a training step costs a lookup and a
    normalisation more. All logits start at zero, which is uniform training. Per sample it fails where a sample is
    seen too seldom beside clean data to learn its weight; per class or cluster, where right and wrong labels share one.

    Args:
        groups: `(N,)` integers, the group of every sample; sample i of the data set is looked up at `groups[i]`.
        bound: see `bounded_weights`.
        detach_mean: see `bounded_weights`.

    Raises:
        ValueError: if `groups` is not one-dimensional, is empty, or holds a negative number.

    Example:
        >>> weights = TableWeights(torch.tensor([0, 0, 1]))
        >>> weights(torch.tensor([0, 2]))
        tensor([1., 1.], grad_fn=<DivBackward0>)
    """

    groups: Tensor

    def __init__(self, groups: Tensor, bound: float = BOUND, detach_mean: bool = False) -> None:
        super().__init__()
        groups = torch.as_tensor(groups)
        if groups.ndim != 1 or groups.numel() == 0 or groups.is_floating_point():
            raise ValueError(
                f"`groups` must be a non-empty vector of integers, got {groups.dtype} of shape {tuple(groups.shape)}."
            )
        if int(groups.min()) < 0:
            raise ValueError(f"`groups` must not be negative, got {int(groups.min())}.")
        self.bound, self.detach_mean = bound, detach_mean
        self.register_buffer("groups", groups.long())
        self.logits = nn.Parameter(torch.zeros(int(groups.max()) + 1))

    @classmethod
    def per_sample(cls, n: int, bound: float = BOUND) -> "TableWeights":
        """One logit for each of `n` samples."""
        return cls(torch.arange(n), bound)

    def forward(self, indices: Tensor, losses: Tensor | None = None) -> Tensor:
        """`(B,)` sample indices -> `(B,)` weights of mean one."""
        logits = self.table().index_select(0, self.groups.index_select(0, indices))
        return bounded_weights(logits, self.bound, self.detach_mean)

    def table(self) -> Tensor:
        """`(groups,)` logits of all groups."""
        return self.logits

    def of_groups(self) -> Tensor:
        """`(groups,)` current weight of each group relative to the table's mean, detached."""
        return bounded_weights(self.table().detach(), self.bound, self.detach_mean)
