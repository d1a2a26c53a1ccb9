"""Clusters beyond the fit: choice of k, small clusters, files, unseen samples, new features, records and pictures."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bilevel import BilevelTrainer, Schedule, Unrolled, sgd
from bilevel.checkpoint import load_checkpoint, save_checkpoint
from bilevel.reweighting import (
    Clusters,
    ClusterWeights,
    Reclustering,
    TableWeights,
    WeightHistory,
    choose_k,
    collect_features,
    effective_sample_size,
    load_features,
    save_features,
)


def blobs(centres=((0, 0), (5, 0), (0, 5)), n=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(c, 0.1, (n, 2)) for c in centres])


def test_the_silhouette_finds_the_number_of_blobs():
    assert choose_k(blobs()) == 3
    assert choose_k(blobs(((0, 0), (5, 0), (0, 5), (5, 5), (10, 0), (10, 5)))) == 6
    assert len(Clusters.fit(blobs(), None).centres) == 3


def test_one_cluster_where_there_is_nothing_to_choose():
    assert choose_k(np.ones((10, 2))) == 1
    assert Clusters.fit(np.ones((10, 2)), None).sizes().tolist() == [10]


def test_small_clusters_join_their_neighbours():
    x = np.concatenate([blobs(), [[100.0, 100.0]]])
    assert Clusters.fit(x, 4).sizes().min() == 1
    merged = Clusters.fit(x, 4, min_size=5)
    assert merged.sizes().min() >= 5
    assert merged.sizes().sum() == 61


def test_a_large_set_is_clustered_in_mini_batches_like_a_small_one():
    x = blobs(n=8000)
    found = Clusters.fit(x, 3).labels.reshape(3, 8000)
    assert (found == found[:, :1]).all()
    assert len(np.unique(found[:, 0])) == 3
    assert np.array_equal(found.ravel(), Clusters.fit(x, 3).labels)


def test_many_clusters_of_few_distinct_rows_are_never_empty():
    x = np.repeat(np.arange(5.0)[:, None], 6000, axis=0)  # large enough for mini-batches
    assert Clusters.fit(x, 40).sizes().min() > 0


def test_unseen_samples_go_to_the_nearest_centre():
    clusters = Clusters.fit(blobs(), 3)
    assert clusters.assign([[4.9, 0.2], [0.1, 5.3]]).tolist() == [clusters.labels[20], clusters.labels[40]]
    with pytest.raises(ValueError, match="3 columns, but the clusters were fitted on 2"):
        clusters.assign(np.ones((1, 3)))


def test_clusters_survive_a_file(tmp_path):
    clusters = Clusters.fit(blobs(), 3)
    clusters.save(tmp_path / "c.h5")
    again = Clusters.load(tmp_path / "c.h5")
    assert np.array_equal(again.labels, clusters.labels)
    assert np.array_equal(again.assign(blobs(seed=1)), clusters.assign(blobs(seed=1)))


def test_a_file_without_clusters_is_refused(tmp_path):
    save_features(tmp_path / "f.h5", blobs())
    with pytest.raises(ValueError, match="holds no clusters: centres"):
        Clusters.load(tmp_path / "f.h5")


def test_features_are_read_back_by_name(tmp_path):
    x = blobs()
    save_features(tmp_path / "f.h5", x, [f"image {i}" for i in range(60)])
    assert np.allclose(load_features(tmp_path / "f.h5"), x, atol=1e-6)
    assert np.allclose(load_features(tmp_path / "f.h5", ["image 7", "image 3"]), x[[7, 3]], atol=1e-6)
    with pytest.raises(ValueError, match="no features of 'other'"):
        load_features(tmp_path / "f.h5", ["other"])
    with pytest.raises(ValueError, match="59 entries for 60 rows"):
        save_features(tmp_path / "g.h5", x, ["a"] * 59)
    save_features(tmp_path / "h.h5", x)
    with pytest.raises(ValueError, match="without names"):
        load_features(tmp_path / "h.h5", ["image 7"])


def test_features_come_from_a_loader_in_order():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    found = collect_features(lambda b: b[:, None] * 2, x.split(4), progress=False)
    assert np.allclose(found, 2 * x.numpy())
    with pytest.raises(ValueError, match="no batch"):
        collect_features(lambda b: b, [], progress=False)


def test_cluster_weights_come_back_with_their_partition(tmp_path):
    weights = ClusterWeights.fit(blobs(), 3)
    weights.logits.data = torch.tensor([0.1, 0.2, 0.3])
    save_checkpoint(tmp_path / "c.pt", weights.state_dict())
    other = ClusterWeights.fit(blobs(seed=3)[::-1].copy(), 3, seed=5)
    other.load_state_dict(load_checkpoint(tmp_path / "c.pt"))
    index = torch.arange(60)
    assert torch.equal(other(index), weights(index))
    assert np.array_equal(other.clusters.assign(blobs(seed=1)), weights.clusters.assign(blobs(seed=1)))


def test_new_clusters_inherit_the_mean_logit_of_their_members():
    weights = ClusterWeights.fit(blobs(), 3)
    weights.logits.data = torch.tensor([0.3, -0.6, 0.9])
    before = weights.logits[weights.groups].detach()
    weights.recluster(np.tile(np.eye(2), (30, 1)) * 9.0)  # even and odd samples
    assert weights.logits.shape == (3,)
    even, odd = weights.groups[0], weights.groups[1]
    assert weights.logits[even].item() == pytest.approx(before[::2].mean().item(), abs=1e-6)
    assert weights.logits[odd].item() == pytest.approx(before[1::2].mean().item(), abs=1e-6)
    with pytest.raises(ValueError, match="59 rows, but these are weights of 60"):
        weights.recluster(np.ones((59, 2)))


def make(tmp_path, epochs):
    """Training whose third blob has wrong labels, reclustered on the network's own features every second epoch."""
    torch.manual_seed(0)
    x = torch.from_numpy(blobs()).float()
    truth = (torch.arange(60) // 20) % 2
    wrong = torch.arange(60) >= 40
    y = torch.where(wrong, 1 - truth, truth)
    body = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    model = nn.Sequential(body, nn.Linear(8, 2))
    weights = ClusterWeights.fit(x, 3, bound=3.0)
    history = WeightHistory(weights, noisy=wrong.numpy())
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=lambda m, w, b: (w(b[2]) * F.cross_entropy(m(b[0]), b[1], reduction="none")).mean(),
        outer_loss=lambda m, w, b: F.cross_entropy(m(b[0]), b[1]),
        inner_batches=[(x, y, torch.arange(60))],
        outer_batches=[(x[::5], truth[::5])],
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.5),
        outer_optimizer=torch.optim.Adam(weights.parameters(), 0.2),
        method=Unrolled(sgd(0.5), steps=1),
        schedule=Schedule(every=1, steps=2),
        callbacks=[Reclustering(weights, lambda: collect_features(body, [x], progress=False), every=2), history],
        checkpoint=tmp_path / "c.pt",
        progress=False,
    )
    return trainer, weights, history


@pytest.mark.filterwarnings("ignore:.*deprecated - use:DeprecationWarning")  # older matplotlib, newer pyparsing
def test_reclustering_on_the_networks_features_keeps_learning_and_the_record_tells(tmp_path):
    trainer, weights, history = make(tmp_path, 12)
    trainer.fit(12)
    index = torch.arange(60)
    final = weights(index).detach()
    assert final[:40].mean() > 2 * final[40:].mean()
    assert len(history.weight) == len(history.effective) == 12
    assert history.noise[-1][int(weights.groups[59])] == 1.0
    assert 0 < history.effective[-1] < history.effective[0] <= 1.0
    assert trainer.history[-1]["effective_samples"] == history.effective[-1]
    history.plot(tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 10_000


def test_a_resumed_run_has_the_same_clusters_weights_and_record(tmp_path):
    straight, weights, history = make(tmp_path / "a", 6)
    straight.fit(6)
    first, *_ = make(tmp_path / "b", 6)
    first.fit(3)
    resumed, again, record = make(tmp_path / "b", 6)
    assert resumed.resume()
    resumed.fit(6)
    assert torch.equal(again.logits, weights.logits)
    assert torch.equal(again.groups, weights.groups)
    assert record.effective == history.effective


def test_a_record_needs_something_to_draw_and_one_truth_per_sample(tmp_path):
    weights = TableWeights.per_sample(4)
    with pytest.raises(ValueError, match="Nothing is recorded"):
        WeightHistory(weights).plot(tmp_path / "x.png")
    with pytest.raises(ValueError, match="one entry per sample"):
        WeightHistory(weights, noisy=[True])


def test_effective_sample_size():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size([1.0, 0.0, 0.0]) == pytest.approx(1)
    assert effective_sample_size([2.0, 1.0]) == pytest.approx(9 / 5)
    with pytest.raises(ValueError, match="not negative"):
        effective_sample_size([-1.0, 2.0])
