"""Sample weights: modules from sample indices (and losses) to weights of mean one over a batch.

Every strategy is called as `weights(indices, losses)`; those that need no losses also take `weights(indices)`.
"""

from bilevel.deprecation import moved_names
from bilevel.reweighting.base import SampleWeights, bounded_weights
from bilevel.reweighting.clusters import Clusters, ClusterWeights, Reclustering, choose_k
from bilevel.reweighting.features import collect_features, load_features, save_features
from bilevel.reweighting.heuristic import ClassWeights, FocalWeights, SelfPacedWeights, SmallLossWeights
from bilevel.reweighting.history import WeightHistory, effective_sample_size
from bilevel.reweighting.network import FeatureNetworkWeights, MetaWeightNet
from bilevel.reweighting.online import L2RW
from bilevel.reweighting.sharing import SharedClusterWeights, Sharing, nested, smoothed
from bilevel.reweighting.table import TableWeights
from bilevel.reweighting.uniform import UniformWeights

__all__ = [
    "L2RW",
    "ClassWeights",
    "ClusterWeights",
    "Clusters",
    "FeatureNetworkWeights",
    "FocalWeights",
    "MetaWeightNet",
    "Reclustering",
    "SampleWeights",
    "SelfPacedWeights",
    "SharedClusterWeights",
    "Sharing",
    "SmallLossWeights",
    "TableWeights",
    "UniformWeights",
    "WeightHistory",
    "bounded_weights",
    "choose_k",
    "collect_features",
    "effective_sample_size",
    "load_features",
    "nested",
    "save_features",
    "smoothed",
]

__getattr__ = moved_names(__name__)
