"""Strategies without a table: against their formulas, and on which samples they turn up or down."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import BilevelProblem, Unrolled, hypergradient
from bilevel.reweighting import (
    L2RW,
    ClassWeights,
    FeatureNetworkWeights,
    FocalWeights,
    MetaWeightNet,
    SelfPacedWeights,
    SmallLossWeights,
    TableWeights,
    UniformWeights,
)

INDEX, LOSSES = torch.arange(6), torch.tensor([0.1, 2.0, 0.3, 0.0, 5.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "weights",
    [
        UniformWeights(),
        TableWeights.per_sample(6),
        FocalWeights(),
        SmallLossWeights(0.5),
        SelfPacedWeights(),
        MetaWeightNet(),
        FeatureNetworkWeights(torch.randn(6, 3)),
    ],
    ids=lambda w: type(w).__name__,
)
def test_weights_have_mean_one_over_the_batch_and_one_way_to_be_called(weights):
    found = weights(INDEX, LOSSES)
    assert found.shape == (6,)
    assert (found >= 0).all()
    assert float(found.detach().mean()) == pytest.approx(1.0, rel=1e-5)


def test_inverse_frequency_and_effective_number():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    inverse = ClassWeights(labels)(torch.arange(6))
    assert float(inverse[4] / inverse[0]) == pytest.approx(2.0)
    assert float(inverse.mean()) == pytest.approx(1.0)
    beta = 0.9
    effective = ClassWeights(labels, beta)(torch.arange(6))
    assert float(effective[4] / effective[0]) == pytest.approx((1 - beta**4) / (1 - beta**2), rel=1e-6)
    assert torch.allclose(ClassWeights(labels, 0.0)(torch.arange(6)), torch.ones(6))


def test_focal_weights_are_their_formula():
    found = FocalWeights(2.0)(INDEX, LOSSES)
    raw = (1 - (-LOSSES).exp()) ** 2
    assert torch.allclose(found, raw / raw.mean())
    assert torch.equal(FocalWeights(0.0)(INDEX, LOSSES), torch.ones(6, dtype=torch.float64))


def test_small_losses_are_kept_after_a_warm_up():
    weights = SmallLossWeights(0.5, warmup=4)
    kept = [int((weights(INDEX, LOSSES) > 0).sum()) for _ in range(6)]
    assert kept == [6, 6, 5, 4, 3, 3]
    assert (weights(INDEX, LOSSES) > 0).tolist() == [True, False, True, True, False, False]
    weights.eval()
    before = int(weights.calls)
    weights(INDEX, LOSSES)
    assert int(weights.calls) == before


def test_self_paced_learning_takes_in_harder_samples_with_time():
    weights = SelfPacedWeights(growth=2.0)
    kept = [int((weights(INDEX, LOSSES) > 0).sum()) for _ in range(6)]
    assert kept[0] == 3
    assert kept == sorted(kept)
    assert kept[-1] == 6
    restored = SelfPacedWeights(growth=2.0)
    restored.load_state_dict(weights.state_dict())
    assert int((restored(INDEX, LOSSES) > 0).sum()) == 6


def test_loss_network_learns_to_turn_down_large_losses():
    """Outer objective: the weighted mean loss of the batch; the direct gradient must favour small losses."""
    weights = MetaWeightNet(hidden=16).double()
    optimizer = torch.optim.Adam(weights.parameters(), 0.05)
    assert torch.allclose(weights(INDEX, LOSSES), torch.ones(6, dtype=torch.float64))
    for _ in range(50):
        optimizer.zero_grad()
        (weights(INDEX, LOSSES) * LOSSES).mean().backward()
        optimizer.step()
    found = weights(INDEX, LOSSES)
    assert found[4] < 0.5 < 1.0 < found[3]


def test_feature_network_gives_alike_samples_alike_weights():
    features = torch.tensor([[0.0, 5.0], [0.01, 5.0], [9.0, 5.0]])
    weights = FeatureNetworkWeights(features, hidden=8)
    assert torch.equal(weights(torch.arange(3)), torch.ones(3))
    for p in weights.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    found = weights(torch.arange(3)).detach()
    assert abs(float(found[0] - found[1])) < 0.05 < abs(float(found[0] - found[2]))
    assert float(found.max() / found.min()) <= 4.0001


def test_online_weights_are_the_positive_part_of_the_one_step_hypergradient():
    torch.manual_seed(0)
    x, y, z, t = (
        torch.randn(8, 3).double(),
        torch.randn(8).double(),
        torch.randn(5, 3).double(),
        torch.randn(5).double(),
    )
    layer = nn.Linear(3, 1).double()
    weights = L2RW(lambda: F.mse_loss(layer(z)[:, 0], t), layer.parameters())
    losses = F.mse_loss(layer(x)[:, 0], y, reduction="none")
    found = weights(torch.arange(8), losses)
    problem = BilevelProblem(
        lambda w, e, _: (e * (x @ w["weight"][0] + w["bias"] - y) ** 2).sum(),
        lambda w, e, _: ((z @ w["weight"][0] + w["bias"] - t) ** 2).mean(),
    )
    w = {k: v.detach() for k, v in layer.named_parameters()}
    exact = hypergradient(problem, w, torch.zeros(8).double(), [None], None, Unrolled(bilevel.sgd(0.1)))
    raw = (-exact.value).clamp(min=0)
    assert torch.allclose(found, raw / raw.mean())
    assert 0 < int((found == 0).sum()) < 8
    (found * losses).mean().backward()  # the losses' graph is still there
    with torch.no_grad():
        assert torch.equal(weights(torch.arange(8), losses), torch.ones(8).double())
    with pytest.raises(ValueError, match="do not detach"):
        weights(torch.arange(8), losses.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassWeights(torch.tensor([0.5])), "labels"),
        (lambda: ClassWeights(torch.tensor([0]), 1.0), "beta"),
        (lambda: FocalWeights(-1.0), "gamma"),
        (lambda: SmallLossWeights(1.0), "forget"),
        (lambda: SelfPacedWeights(0.9), "growth"),
        (lambda: MetaWeightNet(0), "hidden"),
        (lambda: FeatureNetworkWeights(torch.tensor([[float("nan")]])), "features"),
        (lambda: L2RW(lambda: torch.zeros(()), []), "parameters"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
