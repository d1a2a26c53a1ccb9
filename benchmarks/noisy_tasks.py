"""Tasks with corrupted training labels or unbalanced classes, whose truth is known: for `benchmarks/reweighting.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.reweighting import Clusters

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One seeded instance.

    Attributes:
        x: `(n, d)` training inputs.
        given: `(n,)` training labels as given.
        right: `(n,)` whether a given label is right.
        clean: inputs and labels of the small trusted set.
        test: inputs and labels of the test set.
        classes: number of classes.
    """

    x: Tensor
    given: Tensor
    right: Tensor
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


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
    return Task(
        standard[train],
        torch.from_numpy(given),
        torch.from_numpy(given == y[train]),
        (standard[trusted], labels[trusted]),
        (standard[test], labels[test]),
        classes,
    )


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
}
