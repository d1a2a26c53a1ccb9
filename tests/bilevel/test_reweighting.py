"""Sample weights: bounds, normalisation, invariances, clusters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.reweighting import Clusters, ClusterWeights, TableWeights, UniformWeights, bounded_weights


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.1, 3.0))
def test_weights_are_positive_bounded_and_mean_one(logits, bound):
    w = bounded_weights(torch.tensor(logits, dtype=torch.float64), bound)
    assert float(w.mean()) == pytest.approx(1.0)
    assert float(w.min()) > 0
    assert float(w.max() / w.min()) <= np.exp(2 * bound) * (1 + 1e-9)


def test_permuting_samples_permutes_weights():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 0, 6, 5, 4, 2])
    assert torch.allclose(bounded_weights(logits)[order], bounded_weights(logits[order]))


def test_the_gradient_runs_through_the_normaliser():
    """Finite differences of the loss, at float64: a detached normaliser fails this by the mean of the gradient."""
    losses = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (bounded_weights(x) * losses).mean(), logits)


def test_a_detached_normaliser_gives_the_released_gradient():
    """By hand for x = (a, 0): with m = a/2, r = b tanh(m/b), s = 1 - tanh(m/b)^2 and N = (e^r + e^-r)/2 + 1e-6, which
    is held fixed, d/da of (l1 e^r + l2 e^-r) / (2 N) is s (l1 e^r - l2 e^-r) / (4 N)."""
    x = torch.tensor([0.8, 0.0], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([3.0, 5.0], dtype=torch.float64)
    weights = bounded_weights(x, detach_mean=True)
    bound = math.log(2)
    tanh = math.tanh(0.4 / bound)
    r, norm = bound * tanh, math.cosh(bound * tanh) + 1e-6
    assert weights.tolist() == pytest.approx([math.exp(r) / norm, math.exp(-r) / norm], rel=1e-12)
    (gradient,) = torch.autograd.grad((weights * losses).mean(), x)
    slope = (1 - tanh**2) * (3 * math.exp(r) - 5 * math.exp(-r)) / (4 * norm)
    assert gradient.tolist() == pytest.approx([slope, -slope], rel=1e-12)
    (ours,) = torch.autograd.grad((bounded_weights(x) * losses).mean(), x)
    assert ours[0] < 0 < gradient[0]  # the smaller loss: it gains weight in ours, and loses what it has in theirs


def test_weights_of_groups_take_the_released_normaliser():
    table = TableWeights(torch.tensor([0, 0, 1]), detach_mean=True)
    table.logits.data = torch.tensor([0.5, -0.5])
    expected = bounded_weights(table.logits[torch.tensor([0, 1])], detach_mean=True)
    assert torch.equal(table(torch.tensor([1, 2])), expected)
    assert float(expected.mean().detach()) == pytest.approx(1 - 1e-6, abs=1e-6)


def test_samples_of_a_group_share_a_weight_and_its_gradient():
    weights = TableWeights(torch.tensor([0, 1, 0, 2]))
    weights.logits.data = torch.tensor([0.5, -0.5, 0.0])
    w = weights(torch.arange(4))
    assert w[0] == w[2]
    w[0].backward()
    assert weights.logits.grad.shape == (3,)


def test_zero_logits_are_uniform_training():
    assert torch.equal(TableWeights.per_sample(5)(torch.arange(5)).detach(), UniformWeights()(torch.arange(5)))


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(c, 0.1, (20, 2)) for c in ((0, 0), (5, 0), (0, 5))])


def test_clusters_find_blobs_whatever_the_scale_of_a_feature():
    x = blobs() * np.array([1.0, 1e4])
    labels = Clusters.fit(x, 3).labels.reshape(3, 20)
    assert (labels == labels[:, :1]).all()
    assert len(np.unique(labels[:, 0])) == 3


def test_clusters_are_deterministic_and_assign_their_own_samples():
    a, b = Clusters.fit(blobs(), 3, seed=1), Clusters.fit(torch.from_numpy(blobs()), 3, seed=1)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.assign(blobs()), a.labels)
    assert a.sizes().sum() == 60


def test_fewer_distinct_samples_than_clusters():
    clusters = Clusters.fit(np.repeat([[0.0], [1.0]], 5, axis=0), 4)
    assert clusters.sizes().tolist() in ([5, 5],)


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (np.ones(3), 1, "matrix"),
        (np.array([[0.0], [np.nan]]), 1, "row 1"),
        (np.ones((3, 2)), 4, "between 1 and"),
        (np.ones((3, 2)), 0, "between 1 and"),
    ],
)
def test_bad_features_are_named(features, k, message):
    with pytest.raises(ValueError, match=message):
        ClusterWeights.fit(features, k)


@pytest.mark.parametrize(
    "groups", [torch.zeros(0).long(), torch.zeros(3), torch.zeros(2, 2).long(), torch.tensor([-1])]
)
def test_bad_groups_are_named(groups):
    with pytest.raises(ValueError, match="groups"):
        TableWeights(groups)
