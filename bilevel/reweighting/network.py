"""Weights from a small network: of the sample's loss (meta-weight-net), or of any features of it."""

import torch
from torch import Tensor, nn

from bilevel.reweighting.base import BOUND, bounded_weights


class MetaWeightNet(nn.Module):
    """Meta-weight-net: `w_i = V(l_i) / mean_j V(l_j)` with V a one-hidden-layer network ending in a sigmoid.

    The outer variables are V's weights, a few hundred whatever the size of the data. The loss is V's input only (it is
    detached), as published. It learns whether large losses mean noise or hardness; it cannot tell two samples of equal
    loss apart, and so fails where noise hides among small losses (whole clusters of wrong labels that are easy to fit).

    Args:
        hidden: width of the hidden layer; published 100.
        seed: of its initialisation.

    Source: Shu et al. (Meta-Weight-Net, NeurIPS 2019), equations 3 to 5.
    """

    def __init__(self, hidden: int = 100, seed: int = 0) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"`hidden` must be at least 1, got {hidden}.")
        self.net = _seeded_network(1, hidden, seed)

    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` sample indices and losses -> `(B,)` weights of mean one."""
        own = next(self.net.parameters()).dtype
        raw = torch.sigmoid(self.net(losses.detach()[:, None].to(own))[:, 0])
        return (raw / raw.mean()).to(losses.dtype)


class FeatureNetworkWeights(nn.Module):
    """`w_i = bounded(V(h_i))`: a network of standardised per-sample features, bounded and of mean one over the batch.

    Between a table per cluster and one per sample: samples that look alike get alike weights, without a number of
    clusters to choose. The meta-classifier of diffuse-to-detect is one. Memory O(N d) for the features.

    Args:
        features: `(N, d)` finite numbers, one row per sample.
        hidden: width of the hidden layer.
        bound: see `bounded_weights`.
        seed: of its initialisation.

    Raises:
        ValueError: if `features` is not a finite matrix.
    """

    features: Tensor

    def __init__(self, features: Tensor, hidden: int = 32, bound: float = BOUND, seed: int = 0) -> None:
        super().__init__()
        features = torch.as_tensor(features).float()
        if features.ndim != 2 or len(features) == 0 or not bool(features.isfinite().all()):
            raise ValueError(f"`features` must be a finite matrix (samples, features), got {tuple(features.shape)}.")
        scale = features.std(dim=0, correction=0)
        standard = (features - features.mean(dim=0)) / torch.where(scale > 1e-12, scale, torch.ones_like(scale))
        self.register_buffer("features", standard)
        self.bound = bound
        self.net = _seeded_network(features.shape[1], hidden, seed)

    def forward(self, indices: Tensor, losses: Tensor | None = None) -> Tensor:
        """`(B,)` sample indices -> `(B,)` weights of mean one."""
        return bounded_weights(self.net(self.features[indices])[:, 0], self.bound)


def _seeded_network(inputs: int, hidden: int, seed: int) -> nn.Sequential:
    """Two layers whose output starts at zero: uniform training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(hidden, 1)
        net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), last)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net
