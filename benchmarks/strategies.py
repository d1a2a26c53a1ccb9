"""The strategies of sample weights that `benchmarks/reweighting.py` compares, by name.

A file of your own joins them with `python benchmarks/reweighting.py --strategy-file FILE`:

    from strategies import STRATEGIES, Strategy
    STRATEGIES["mine"] = Strategy(lambda task, model: MyWeights(task.features))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noisy_tasks import Task
from torch import Tensor, nn

from bilevel import RankOneGaussNewton, Unrolled, sgd
from bilevel.reweighting import (
    L2RW,
    ClassWeights,
    ClusterWeights,
    FeatureNetworkWeights,
    FocalWeights,
    MetaWeightNet,
    SelfPacedWeights,
    SmallLossWeights,
    TableWeights,
    UniformWeights,
)


@dataclass(frozen=True)
class Strategy:
    """How to make the weights of a task, and how they are learned.

    Attributes:
        make: `make(task, model) -> weights`.
        outer_lr: learning rate of the outer variables.
        method: `method(lr)`, the hypergradient method for an inner learning rate.
    """

    make: Callable[[Task, nn.Module], nn.Module]
    outer_lr: float = 0.1
    method: Callable[[float], Any] = lambda lr: Unrolled(sgd(lr), steps=1)


def _clean_loss(task: Task, model: nn.Module) -> Callable[[], Tensor]:
    return lambda: task.losses(model(task.clean[0]), task.clean[1]).mean()


def _clusters(task: Task, model: nn.Module) -> nn.Module:
    return ClusterWeights.fit(task.features, min(25, len(task.x) // 4), bound=3.0)


def _as_published(lr: float) -> RankOneGaussNewton:
    return RankOneGaussNewton(as_published=True, step_size=lr, warn=False)


def _per_sample(task: Task, model: nn.Module) -> nn.Module:
    return TableWeights.per_sample(len(task.x), bound=3.0)


STRATEGIES: dict[str, Strategy] = {
    "uniform": Strategy(lambda t, m: UniformWeights()),
    "per sample": Strategy(_per_sample, 0.3),
    "per class": Strategy(lambda t, m: TableWeights(t.groups, bound=3.0)),
    "per cluster": Strategy(_clusters),
    "per cluster, rank-one": Strategy(_clusters, method=lambda lr: RankOneGaussNewton(warn=False)),
    "per cluster, rank-one as published": Strategy(_clusters, method=_as_published),
    "meta-weight-net": Strategy(lambda t, m: MetaWeightNet(), 0.01),
    "feature network": Strategy(lambda t, m: FeatureNetworkWeights(t.features, bound=3.0), 0.01),
    "L2RW": Strategy(lambda t, m: L2RW(_clean_loss(t, m), m.parameters())),
    "inverse frequency": Strategy(lambda t, m: ClassWeights(t.groups)),
    "effective number": Strategy(lambda t, m: ClassWeights(t.groups, 0.99)),
    "focal": Strategy(lambda t, m: FocalWeights()),
    "small loss": Strategy(lambda t, m: SmallLossWeights(0.4)),
    "self-paced": Strategy(lambda t, m: SelfPacedWeights()),
}
