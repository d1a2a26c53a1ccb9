"""Learned weights of images: what describes an image, which images share a weight, and what moves it."""

from istd.weights.alignment import OutputAlignment
from istd.weights.clusters import SHARINGS, cluster_count, cluster_weights
from istd.weights.descriptors import describe_images
from istd.weights.settings import ImageClusters

__all__ = ["SHARINGS", "ImageClusters", "OutputAlignment", "cluster_count", "cluster_weights", "describe_images"]
