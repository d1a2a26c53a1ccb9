"""Tasks with corrupted training labels or unbalanced classes, whose truth is known: for `benchmarks/reweighting.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.reweighting import Clusters
from istd.data.layouts import Dataset, Sample, load_folder
from istd.data.scenes import synthetic_dataset
from istd.labels import INITIAL_MASKS
from istd.losses import bce_and_soft_iou
from istd.weights.descriptors import describe_images

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One seeded instance.

    Attributes:
        x: `(n, ...)` training inputs.
        given: `(n, ...)` training labels as given.
        right: `(n,)` whether a given label is right.
        clean: inputs and labels of the small trusted set.
        features: `(n, d)` what clusters and feature networks see of a sample.
        groups: `(n,)` class of every sample as given.
        network: makes the network.
        losses: `losses(outputs, labels) -> (B,)`.
        score: `score(network) -> percent` on the test set.
        lr: inner learning rate.
        epochs: how long to train.
    """

    x: Tensor
    given: Tensor
    right: Tensor
    clean: tuple[Tensor, Tensor]
    features: Tensor
    groups: Tensor
    network: Callable[[], nn.Module]
    losses: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[nn.Module], float]
    lr: float
    epochs: int


def symmetric(rate: float) -> Callable[[Labels, Tensor, np.random.Generator, int], Labels]:
    """A share of labels is replaced by another class, each alike."""

    def corrupt(y: Labels, x: Tensor, rng: np.random.Generator, classes: int) -> Labels:
        wrong = rng.random(len(y)) < rate
        return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y)

    return corrupt


def asymmetric(rate: float) -> Callable[[Labels, Tensor, np.random.Generator, int], Labels]:
    """A share of labels moves to the next class."""

    def corrupt(y: Labels, x: Tensor, rng: np.random.Generator, classes: int) -> Labels:
        return np.where(rng.random(len(y)) < rate, (y + 1) % classes, y)

    return corrupt


def by_cluster(rate: float, k: int = 25) -> Callable[[Labels, Tensor, np.random.Generator, int], Labels]:
    """Whole k-means clusters (about `rate` of them) carry one consistent wrong label: easy to fit, so of small loss."""

    def corrupt(y: Labels, x: Tensor, rng: np.random.Generator, classes: int) -> Labels:
        labels = Clusters.fit(x, k, seed=int(rng.integers(1 << 30))).labels
        bad = rng.permutation(k)[: round(rate * k)]
        shift = np.zeros(k, dtype=np.int64)
        shift[bad] = rng.integers(1, classes, len(bad))
        return np.asarray((y + shift[labels]) % classes)

    return corrupt


def keep(y: Labels, x: Tensor, rng: np.random.Generator, classes: int) -> Labels:
    """All labels right."""
    return y


def make(source: str, corrupt: Callable[..., Labels], clean: int, imbalance: int, seed: int) -> Task:
    """Draw splits, corrupt the training labels, and thin out the upper half of the classes by `imbalance`."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{source}")(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    x, y = x[order], y[order].astype(np.int64)
    classes = int(y.max()) + 1
    n = round(0.55 * len(y))
    train, trusted, test = np.split(np.arange(len(y)), [n, n + clean])
    if imbalance > 1:
        rare = y[train] >= (classes + 1) // 2
        train = train[~rare | (rng.random(len(train)) < 1 / imbalance)]
    mean, scale = x[train].mean(0), x[train].std(0)
    standard = torch.from_numpy((x - mean) / np.where(scale > 1e-9, scale, 1.0)).float()
    given = corrupt(y[train], standard[train], rng, classes)
    labels = torch.from_numpy(y)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(standard.shape[1], 64), nn.ReLU(), nn.Linear(64, classes))

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            predicted = model(standard[test]).argmax(1)
        return 100 * float(balanced_accuracy_score(y[test], predicted.numpy()))

    return Task(
        x=standard[train],
        given=torch.from_numpy(given),
        right=torch.from_numpy(given == y[train]),
        clean=(standard[trusted], labels[trusted]),
        features=standard[train],
        groups=torch.from_numpy(given),
        network=network,
        losses=lambda outputs, target: F.cross_entropy(outputs, target, reduction="none"),
        score=score,
        lr=0.1,
        epochs=40,
    )


def segmentation(dataset: Dataset, clean: int, seed: int, side: int = 24, rate: float = 0.4, k: int = 12) -> Task:
    """Windows around targets with pseudo-masks drawn from their points; in some clusters of windows they are too wide.

    The window's pseudo-mask is that of the half-maximum rule. Windows are clustered by image statistics; in about
    `rate` of the clusters every mask is dilated by 3 pixels, as a rule with a poor threshold would draw them. The
    trusted set has pseudo-masks of the rule as it is: no true mask is used but for the score, the IoU on test windows.
    """
    rng = np.random.default_rng(seed)
    windows = [_window(s, side) for s in (*dataset.train, *dataset.val) if len(s.points)]
    windows = [windows[i] for i in rng.permutation(len(windows))]
    tests = [_window(s, side) for s in dataset.test if len(s.points)]
    rule = INITIAL_MASKS["half-maximum"]
    x = torch.from_numpy(np.stack([w[0] for w in windows]))[:, None]
    masks = np.stack([rule(Sample("", image, points)).mask for image, points, _ in windows])
    n = len(windows) - clean
    features = torch.from_numpy(describe_images([w[0] for w in windows[:n]])).float()
    clusters = Clusters.fit(features, k, seed).labels
    bad = np.isin(clusters, rng.permutation(clusters.max() + 1)[: round(rate * k)])
    wide = np.stack([ndimage.binary_dilation(m, iterations=3) for m in masks[:n]])
    given = torch.from_numpy(np.where(bad[:, None, None], wide, masks[:n])).float()[:, None]
    mean, scale = x[:n].mean(), x[:n].std()
    test_x = (torch.from_numpy(np.stack([w[0] for w in tests]))[:, None] - mean) / scale
    truth = np.stack([w[2] for w in tests])

    def network() -> nn.Module:
        layers: list[nn.Module] = []
        for cin, dilation in ((1, 1), (8, 2), (8, 4)):
            layers += [nn.Conv2d(cin, 8, 3, padding=dilation, dilation=dilation), nn.GroupNorm(2, 8), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(8, 1, 1))

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            found = (model(test_x)[:, 0] > 0).numpy()
        return 100 * float((found & truth).sum() / (found | truth).sum())

    return Task(
        x=(x[:n] - mean) / scale,
        given=given,
        right=torch.from_numpy(~bad),
        clean=((x[n:] - mean) / scale, torch.from_numpy(masks[n:]).float()[:, None]),
        features=features,
        groups=torch.zeros(n, dtype=torch.long),
        network=network,
        losses=bce_and_soft_iou,
        score=score,
        lr=0.1,
        epochs=20,
    )


def _window(sample: Sample, side: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Image, points and true mask of a square window around the first point."""
    truth = sample.truth()
    if truth is None:
        raise ValueError(f"image {sample.name!r} has no true mask, which the scores need")
    pad = side // 2
    row, col = sample.points[0]
    image = np.pad(sample.image, pad, mode="reflect")[row : row + side, col : col + side]
    mask = np.pad(truth, pad)[row : row + side, col : col + side]
    points = sample.points - np.array([row - pad, col - pad])
    inside = ((points >= 0) & (points < side)).all(axis=1)
    return np.ascontiguousarray(image), points[inside], mask


TASKS: dict[str, Callable[[int], Task]] = {
    "digits, 20 % symmetric": lambda s: make("digits", symmetric(0.2), 100, 1, s),
    "digits, 40 % symmetric": lambda s: make("digits", symmetric(0.4), 100, 1, s),
    "digits, 60 % symmetric": lambda s: make("digits", symmetric(0.6), 100, 1, s),
    "digits, 40 % asymmetric": lambda s: make("digits", asymmetric(0.4), 100, 1, s),
    "digits, 40 % of clusters": lambda s: make("digits", by_cluster(0.4), 100, 1, s),
    "digits, 40 % of clusters, a quarter of the clean set": lambda s: make("digits", by_cluster(0.4), 25, 1, s),
    "digits, imbalance 1:10": lambda s: make("digits", keep, 100, 10, s),
    "digits, imbalance 1:100": lambda s: make("digits", keep, 100, 100, s),
    "wine, 40 % symmetric": lambda s: make("wine", symmetric(0.4), 20, 1, s),
    "breast cancer, 40 % symmetric": lambda s: make("breast_cancer", symmetric(0.4), 30, 1, s),
    "synthetic scenes, 40 % of clusters": lambda s: segmentation(synthetic_dataset(200, 24, 200, seed=s), 24, s),
}


def on_images(folder: Path) -> dict[str, Callable[[int], Task]]:
    """The segmentation task on a dataset with true masks."""
    dataset = load_folder(folder)
    return {f"{dataset.name}, 40 % of clusters": lambda s: segmentation(dataset, 24, s)}
