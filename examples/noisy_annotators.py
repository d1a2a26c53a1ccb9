"""Learning from annotators of unknown skill: one weight per annotator, learned from a few trusted labels.

    python examples/noisy_annotators.py

Digits of scikit-learn. 1000 training images, each labelled by two of ten annotators; three annotators are careful,
seven are right in one case of four. 60 images carry trusted labels. The outer variables are ten logits, one per
annotator: the outer objective, the loss on the trusted images, says whom to believe.
"""

import numpy as np
import torch
from torch.nn import functional as F

from bilevel import BilevelTrainer, Unrolled, sgd
from bilevel.reweighting import TableWeights, UniformWeights

SKILL = np.array([0.95, 0.95, 0.95, *[0.25] * 7])  # the probability that an annotator gives the true label


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and true labels in random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return torch.from_numpy(images[order] / 16).float(), torch.from_numpy(labels[order])


def annotate(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two answers per image: `(2n,)` image, annotator and given label of each answer."""
    rng = np.random.default_rng((seed, 1))
    image = np.repeat(np.arange(len(labels)), 2)
    annotator = np.concatenate([rng.choice(len(SKILL), 2, replace=False) for _ in range(len(labels))])
    right = rng.random(len(image)) < SKILL[annotator]
    given = np.where(right, labels.numpy()[image], (labels.numpy()[image] + rng.integers(1, 10, len(image))) % 10)
    return torch.from_numpy(image), torch.from_numpy(annotator), torch.from_numpy(given)


def train(seed: int, learned: bool, epochs: int = 100) -> tuple[float, torch.Tensor]:
    """Test accuracy, and the weight of every annotator."""
    x, y = digits(seed)
    image, annotator, given = annotate(y[:1000], seed)
    weights = TableWeights(annotator, bound=3.0) if learned else UniformWeights()
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=lambda m, w, b: (w(b[2]) * F.cross_entropy(m(b[0]), b[1], reduction="none")).mean(),
        outer_loss=lambda m, w, b: F.cross_entropy(m(b[0]), b[1]),
        inner_batches=[(x[image], given, torch.arange(len(image)))],
        outer_batches=[(x[1000:1060], y[1000:1060])],
        inner_optimizer=torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        outer_optimizer=torch.optim.Adam(weights.parameters(), lr=0.1) if learned else None,
        method=Unrolled(sgd(0.5), steps=1),
        progress=False,
    )
    trainer.fit(epochs)
    with torch.no_grad():
        accuracy = float((model(x[1060:]).argmax(1) == y[1060:]).float().mean())
    found = weights.of_groups() if isinstance(weights, TableWeights) else torch.ones(len(SKILL))
    return accuracy, found


if __name__ == "__main__":
    seeds = (0, 1, 2)
    for name, learned in (("every answer counts the same", False), ("one learned weight per annotator", True)):
        runs = [train(seed, learned) for seed in seeds]
        scores = 100 * np.array([accuracy for accuracy, _ in runs])
        print(f"{name:34s} accuracy {scores.mean():.1f} +- {scores.std(ddof=1):.1f} % over seeds {seeds}")
    mean = torch.stack([weights for _, weights in runs]).mean(0)
    pairs = zip(mean.tolist(), SKILL, strict=True)
    print("weights of the annotators:", ", ".join(f"{w:.2f} (skill {s:.2f})" for w, s in pairs))
