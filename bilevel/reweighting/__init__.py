"""Sample weights: modules from sample indices (and losses) to weights of mean one over a batch.

Every strategy is called as `weights(indices, losses)`; those that need no losses also take `weights(indices)`.
"""

from bilevel.reweighting.base import SampleWeights, bounded_weights
from bilevel.reweighting.clusters import Clusters, ClusterWeights
from bilevel.reweighting.heuristic import ClassWeights, FocalWeights, SelfPacedWeights, SmallLossWeights
from bilevel.reweighting.network import FeatureNetworkWeights, LossNetworkWeights
from bilevel.reweighting.online import OnlineWeights
from bilevel.reweighting.table import TableWeights
from bilevel.reweighting.uniform import UniformWeights

__all__ = [
    "ClassWeights",
    "ClusterWeights",
    "Clusters",
    "FeatureNetworkWeights",
    "FocalWeights",
    "LossNetworkWeights",
    "OnlineWeights",
    "SampleWeights",
    "SelfPacedWeights",
    "SmallLossWeights",
    "TableWeights",
    "UniformWeights",
    "bounded_weights",
]
