"""Learning with 40 % wrong labels: weights of training samples, learned from a small clean set, against uniform ones.

    python examples/noisy_labels.py

Digits of scikit-learn. 1000 training images, of which 400 carry a wrong label, 100 clean validation images, 697 test
images. The outer variables are one weight per training sample; the outer objective is the loss on the clean set.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from bilevel import BilevelTrainer, Unrolled, sgd
from bilevel.reweighting import TableWeights, UniformWeights


def digits(seed: int, noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, true labels and labels of which a share of the first 1000 is wrong, in random order."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    x, y = torch.from_numpy(images[order] / 16).float(), torch.from_numpy(labels[order])
    noisy = y.clone()
    flipped = torch.from_numpy(rng.permutation(1000)[: round(noise * 1000)])
    noisy[flipped] = (y[flipped] + torch.from_numpy(rng.integers(1, 10, len(flipped)))) % 10
    return x, y, noisy


def train(seed: int, weights: torch.nn.Module, epochs: int = 100) -> float:
    """Test accuracy of a small network trained with the given weights."""
    x, y, noisy = digits(seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    learned = list(weights.parameters())
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=lambda m, w, b: (w(b[2]) * F.cross_entropy(m(b[0]), b[1], reduction="none")).mean(),
        outer_loss=lambda m, w, b: F.cross_entropy(m(b[0]), b[1]),
        inner_batches=[(x[:1000], noisy[:1000], torch.arange(1000))],
        outer_batches=[(x[1000:1100], y[1000:1100])],
        inner_optimizer=torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        outer_optimizer=torch.optim.Adam(learned, lr=0.3) if learned else None,
        method=Unrolled(sgd(0.5), steps=1),
        progress=False,
    )
    trainer.fit(epochs)
    with torch.no_grad():
        return float((model(x[1100:]).argmax(1) == y[1100:]).float().mean())


if __name__ == "__main__":
    seeds = (0, 1, 2)
    for name, make in (
        ("uniform weights", UniformWeights),
        ("learned sample weights", lambda: TableWeights.per_sample(1000, bound=3.0)),
    ):
        scores = np.array([train(seed, make()) for seed in seeds])
        mean, deviation = 100 * scores.mean(), 100 * scores.std(ddof=1)
        print(f"{name:24s} test accuracy {mean:.1f} +- {deviation:.1f} % over {len(seeds)} seeds")
