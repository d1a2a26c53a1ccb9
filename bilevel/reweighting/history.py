"""What sample weights did during training: recorded per epoch, summarised, drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bilevel.checkpoint import write_atomically
from bilevel.events import Callback
from bilevel.reweighting.table import TableWeights

SHOWN = 12  # curves that a plot can carry; beyond, the most extreme weights are shown


def effective_sample_size(weights: ArrayLike) -> float:
    """`(sum w)^2 / sum w^2`: the number of equally weighted samples with the same variance of a mean; N if uniform.

    Args:
        weights: `(N,)` non-negative numbers.

    Raises:
        ValueError: if they are negative, not finite, or all zero.

    Source: Kish (1965).
    """
    w = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise ValueError("`weights` must be finite and not negative, and one of them positive.")
    return float(w.sum() ** 2 / (w**2).sum())


class WeightHistory(Callback):
    """Callback of `BilevelTrainer`: the weight and size of every group (cluster, class, sample) after every epoch.

    Args:
        weights: a table of weights; its groups may change during training (`Reclustering`).
        noisy: `(N,)` whether a sample's label is known to be wrong, where the truth is known; None otherwise.

    Attributes:
        weight: one `(groups,)` vector of weights per epoch.
        size: one `(groups,)` vector of member counts per epoch.
        noise: one `(groups,)` vector of shares of noisy members per epoch (NaN in an empty group), or empty.
        effective: one effective sample size per epoch, as a share of N.

    Adds `effective_samples` to the metrics of every epoch, so that the trainer's history and its bar show it.
    """

    def __init__(self, weights: TableWeights, noisy: ArrayLike | None = None) -> None:
        n = len(weights.groups)
        self._table = weights
        self._noisy = None if noisy is None else np.asarray(noisy, dtype=bool)
        if self._noisy is not None and self._noisy.shape != (n,):
            raise ValueError(f"`noisy` must have one entry per sample ({n}), got shape {self._noisy.shape}.")
        self.weight: list[NDArray[np.float64]] = []
        self.size: list[NDArray[np.int64]] = []
        self.noise: list[NDArray[np.float64]] = []
        self.effective: list[float] = []

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Record one epoch."""
        groups = self._table.groups.cpu().numpy()
        weight = self._table.of_groups().cpu().double().numpy()
        size = np.bincount(groups, minlength=len(weight))
        self.weight.append(weight)
        self.size.append(size)
        if self._noisy is not None:
            wrong = np.bincount(groups, weights=self._noisy, minlength=len(weight))
            self.noise.append(np.where(size > 0, wrong / np.maximum(size, 1), np.nan))
        self.effective.append(effective_sample_size(weight[groups]) / len(groups))
        metrics["effective_samples"] = self.effective[-1]

    def plot(self, path: Path | str) -> None:
        """Write a PNG: weights over time, sizes, effective sample size, and weight against noise where it is known.

        Raises:
            ValueError: if nothing has been recorded.
        """
        if not self.weight:
            raise ValueError("Nothing is recorded yet: pass this to BilevelTrainer(callbacks=[...]) and call fit.")
        import matplotlib.figure  # drawing is optional; no window system is touched

        figure = matplotlib.figure.Figure(figsize=(11, 6.5), layout="constrained")
        (curves, sizes), (effective, noise) = figure.subplots(2, 2)
        epochs = np.arange(1, len(self.weight) + 1)
        last, size = self.weight[-1], self.size[-1]
        table = np.array([np.pad(w, (0, len(last) - len(w)), constant_values=np.nan) for w in self.weight])
        order = np.argsort(last)
        shown = order if len(order) <= SHOWN else np.concatenate([order[: SHOWN // 2], order[-SHOWN // 2 :]])
        for group in shown:
            curves.plot(epochs, table[:, group], label=str(group))
        curves.legend(fontsize=7, ncols=2, title="group", title_fontsize=7)
        hidden = "" if len(shown) == len(order) else f" (the {SHOWN} most extreme of {len(order)})"
        curves.set(title=f"weight of a group{hidden}", xlabel="epoch", ylabel="weight")
        curves.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
        sizes.scatter(size, last, s=14)
        sizes.set(title="size and final weight", xlabel="samples in the group", ylabel="weight")
        effective.plot(epochs, 100 * np.array(self.effective))
        effective.set(title="effective sample size", xlabel="epoch", ylabel="% of the samples", ylim=(0, 103))
        if self.noise:
            noise.scatter(100 * self.noise[-1], last, s=6 + 60 * size / max(size.max(), 1), alpha=0.7)
            noise.set(title="noise and final weight", xlabel="% of wrong labels in the group", ylabel="weight")
        else:
            noise.hist(last, bins=30)
            noise.set(title="final weights", xlabel="weight", ylabel="groups")
        write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))

    def state_dict(self) -> dict[str, Any]:
        """The record so far."""
        vectors = {name: [torch.from_numpy(x) for x in getattr(self, name)] for name in ("weight", "size", "noise")}
        return {**vectors, "effective": list(self.effective)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        for name in ("weight", "size", "noise"):
            setattr(self, name, [x.numpy() for x in state[name]])
        self.effective = list(state["effective"])
