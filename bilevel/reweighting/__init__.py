"""Sample weights: modules from sample indices to weights of mean one over a batch."""

from bilevel.reweighting.base import SampleWeights, bounded_weights
from bilevel.reweighting.clusters import Clusters, ClusterWeights
from bilevel.reweighting.table import TableWeights
from bilevel.reweighting.uniform import UniformWeights

__all__ = ["ClusterWeights", "Clusters", "SampleWeights", "TableWeights", "UniformWeights", "bounded_weights"]
