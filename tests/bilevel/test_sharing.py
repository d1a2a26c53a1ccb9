"""Weights shared between clusters: the mix is what its formula says, and the hypergradient passes through it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bilevel import Unrolled, hypergradient, sgd
from bilevel.checkpoint import load_checkpoint, save_checkpoint
from bilevel.modules import parameters_of, problem_from_modules
from bilevel.reweighting import Clusters, ClusterWeights, SharedClusterWeights, nested, smoothed


def two_groups_of_blobs(n=6, seed=0):
    """Four tight blobs in two far pairs: rows, and the blob of every row."""
    centres = np.array([(0.0, 0.0), (1.0, 1.0), (20.0, 20.0), (21.0, 21.0)])
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(c, 0.02, (n, 2)) for c in centres]), np.repeat(np.arange(4), n)


def test_nested_clusters_add_the_logit_of_their_parent():
    x, blob = two_groups_of_blobs()
    weights = SharedClusterWeights.fit(x, 4, nested(2))
    assert weights.logits.shape == (6,)
    own, parent = weights.mixing[:, :4], weights.mixing[:, 4:]
    assert torch.equal(own, torch.eye(4))
    assert (parent.sum(1) == 1).all()
    at = [int(weights.groups[np.flatnonzero(blob == b)[0]]) for b in range(4)]
    assert torch.equal(parent[at[0]], parent[at[1]])
    assert torch.equal(parent[at[2]], parent[at[3]])
    assert not torch.equal(parent[at[0]], parent[at[2]])


def test_smoothing_follows_its_formula_and_vanishes_with_its_width():
    centres = np.array([[0.0], [1.0], [3.0]])  # nearest neighbours 1, 1 and 2 away: s = width * 1
    found = smoothed(0.5)(centres)
    kernel = np.exp(-((centres - centres.T) ** 2) / (2 * 0.25))
    np.testing.assert_allclose(found, kernel / kernel.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(smoothed(1e-3)(centres), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(smoothed(1e3)(centres), np.full((3, 3), 1 / 3), rtol=1e-4)
    assert smoothed()(centres[:1]).tolist() == [[1.0]]


@pytest.mark.parametrize("share", [nested(2), smoothed(1.0)])
def test_a_cluster_without_trusted_samples_learns_from_its_neighbour(share):
    """Only blob 0 is like the outer batch; its neighbour 1 shares what it learns, the far blobs share less."""
    x, blob = two_groups_of_blobs()
    torch.manual_seed(0)
    features = torch.randn(len(x), 3, dtype=torch.float64)
    features[:, 2] = torch.from_numpy(blob == 0).double()
    labels = torch.zeros(len(x)).long()
    labels[blob == 0] = 1
    model = torch.nn.Linear(3, 2).double()

    def found(weights):
        problem = problem_from_modules(
            model,
            weights,
            lambda m, w, b: (w(torch.arange(len(x))) * F.cross_entropy(m(features), labels, reduction="none")).mean(),
            lambda m, w, b: F.cross_entropy(m(features[:6]), labels[:6]),
        )
        trees = parameters_of(model), parameters_of(weights)
        return hypergradient(problem, *trees, [None], None, Unrolled(sgd(0.5), 2)).value["logits"]

    shared = SharedClusterWeights.fit(x, 4, share).double()
    alone = ClusterWeights(shared.clusters).double()
    torch.testing.assert_close(found(shared), shared.mixing.T @ found(alone), rtol=1e-10, atol=1e-14)
    with torch.no_grad():
        shared.logits -= found(shared)
    table = shared.table()[[int(shared.groups[np.flatnonzero(blob == b)[0]]) for b in range(4)]]
    own_gap, far_gap = (table[0] - table[1]).abs(), (table[0] - table[2:]).abs().min()
    assert own_gap < far_gap


@pytest.mark.parametrize("share", [nested(2), smoothed(0.7)])
def test_shared_weights_are_restored_and_carried_over(share, tmp_path):
    x, _ = two_groups_of_blobs()
    weights = SharedClusterWeights.fit(x, 4, share)
    with torch.no_grad():
        weights.logits.copy_(torch.linspace(-1, 1, len(weights.logits)))
    save_checkpoint(tmp_path / "w.pt", weights.state_dict())
    other = SharedClusterWeights.fit(two_groups_of_blobs(seed=3)[0], 4, share, seed=5)
    other.load_state_dict(load_checkpoint(tmp_path / "w.pt"))
    index = torch.arange(len(x))
    torch.testing.assert_close(other(index), weights(index))
    before = weights(index).detach()
    weights.recluster(x * 2.0, seed=7)  # the same four blobs under other numbers
    torch.testing.assert_close(weights(index).detach(), before, rtol=1e-4, atol=1e-5)
    before = {k: v.clone() for k, v in weights.state_dict().items() if k != "_extra_state"}
    with pytest.raises(ValueError, match="distinct rows"):
        weights.recluster(np.repeat(x[:1], len(x), axis=0))
    after = weights.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("logits", "groups", "mixing"))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`width`"):
        smoothed(0.0)
    with pytest.raises(ValueError, match="`parents`"):
        nested(0)
    with pytest.raises(ValueError, match="one row per cluster"):
        SharedClusterWeights(Clusters.fit(two_groups_of_blobs()[0], 4), lambda centres: np.eye(2))
