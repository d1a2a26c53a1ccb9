"""Tables and pictures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from istd.data.layouts import Sample
from istd.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("IoU", "nIoU", "Pd", "Fa")
ZOOM = 24  # half side in pixels of the zoomed views
PANELS = 24  # of the picture of masks


class Panel(NamedTuple):
    """One test image of the report: its sample and the student's probabilities."""

    sample: Sample
    student: NDArray[np.float32]


def format_table(rows: Mapping[str, Mapping[str, float] | None], title: str) -> str:
    """A plain-text table of metric blocks; IoU, nIoU and Pd in percent, Fa in 1e-6. None blocks are left out."""
    present = {name: block for name, block in rows.items() if block is not None}
    width = max([len(title), *(len(name) for name in present)])
    head = f"{title:<{width}} {'IoU %':>8} {'nIoU %':>8} {'Pd %':>8} {'Fa 1e-6':>9}"
    lines = [head, "-" * len(head)]
    for name, block in present.items():
        numbers = [100 * block["IoU"], 100 * block["nIoU"], 100 * block["Pd"]]
        lines.append(f"{name:<{width}} " + " ".join(f"{v:8.2f}" for v in numbers) + f" {1e6 * block['Fa']:9.1f}")
    return "\n".join(lines)


def draw_report(
    path: Path,
    title: str,
    training: Sequence[tuple[Sample, NDArray[np.bool_], NDArray[np.bool_]]],
    test: Sequence[Panel],
    history: Sequence[Mapping[str, float]],
    weights: NDArray[np.float64] | None,
) -> None:
    """Draw images, points, pseudo-masks, predictions and training curves into one PNG, written atomically.

    Args:
        path: where to write.
        title: first line; says which method, student and VFM this is.
        training: training samples with their initial and final pseudo-masks.
        test: test samples with their predictions; the truth is drawn where there is one.
        history: one dict of numbers per epoch.
        weights: learned weight of every cluster, or None.
    """
    columns = max(len(training), len(test), 4)
    figure = new_figure(2.3 * columns, 10.2)
    figure.suptitle(title, fontsize=11)
    rows: Any = figure.subfigures(3, 1, height_ratios=(3.0, 3.0, 2.6))
    rows[0].suptitle("Training: whole image; around a point, first and last pseudo-mask (zoom)", fontsize=9)
    axes: Any = rows[0].subplots(2, columns, squeeze=False)
    for column in range(columns):
        _training_column(axes[:, column], training[column] if column < len(training) else None)
    rows[1].suptitle("Test: student's probability over the image; zoom with prediction and truth", fontsize=9)
    axes = rows[1].subplots(2, columns, squeeze=False)
    for column in range(columns):
        _test_column(axes[:, column], test[column] if column < len(test) else None)
    _curves(rows[2].subplots(1, 3 if weights is None else 4), history, weights)
    save_figure(figure, path)


def draw_curve(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw Pd over Fa and the pixel ROC of some detectors into one PNG.

    Args:
        path: where to write.
        curves: by name, the points of an `OperatingCurve`.
    """
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    for name, points in curves.items():
        left.plot([1e6 * p["Fa"] for p in points], [100 * p["Pd"] for p in points], marker=".", label=name)
        right.plot([1e6 * p["FPR"] for p in points], [100 * p["TPR"] for p in points], marker=".", label=name)
    left.set(title="targets", xlabel="Fa, 1e-6", ylabel="Pd, %")
    right.set(title="pixels", xlabel="false positive rate, 1e-6", ylabel="true positive rate, %")
    right.legend(fontsize=7)
    save_figure(figure, path)


def evenly(n: int, most: int) -> list[int]:
    """Up to `most` of the indices 0..n-1, evenly spread from the first to the last."""
    found: list[int] = np.linspace(0, n - 1, min(most, n)).round().astype(int).tolist()
    return found


def draw_masks(path: Path, samples: Sequence[Sample], masks: Sequence[NDArray[np.bool_]]) -> None:
    """Draw the windows around the first points of up to `PANELS` samples, with their masks, into one JPEG."""
    chosen = evenly(len(samples), PANELS)
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(2.0 * columns, 2.2 * rows)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen, strict=False):
        window = _zoom(samples[i])
        _image(axis, samples[i].image[window], samples[i].name)
        _outline(axis, masks[i][window], "tab:red", "mask")
    save_figure(figure, path, "jpeg")


def _training_column(axes: Any, item: tuple[Sample, NDArray[np.bool_], NDArray[np.bool_]] | None) -> None:
    for axis in axes:
        axis.axis("off")
    if item is None:
        return
    sample, first, last = item
    _image(axes[0], sample.image, sample.name)
    axes[0].plot(sample.points[:, 1], sample.points[:, 0], "o", mfc="none", mec="tab:orange", ms=7)
    window = _zoom(sample)
    _image(axes[1], sample.image[window], "")
    _outline(axes[1], first[window], "tab:cyan", "first")
    _outline(axes[1], last[window], "tab:red", "last", "--")
    axes[1].legend(loc="lower right", fontsize=6, framealpha=0.6)


def _test_column(axes: Any, panel: Panel | None) -> None:
    for axis in axes:
        axis.axis("off")
    if panel is None:
        return
    _image(axes[0], panel.sample.image, panel.sample.name)
    shown = np.ma.masked_less(panel.student, 0.3)
    axes[0].imshow(shown, cmap="autumn", vmin=0, vmax=1, alpha=0.9)
    window = _zoom(panel.sample)
    _image(axes[1], panel.sample.image[window], "")
    _outline(axes[1], panel.student[window] > 0.5, "tab:red", "student")
    truth = panel.sample.truth()
    if truth is not None:
        _outline(axes[1], truth[window], "tab:green", "truth", "--")
    axes[1].legend(loc="lower right", fontsize=6, framealpha=0.6)


def _curves(axes: Any, history: Sequence[Mapping[str, float]], weights: NDArray[np.float64] | None) -> None:
    for axis, names, label in (
        (axes[0], ("inner_loss", "outer_loss"), "loss"),
        (axes[1], ("val_IoU", "val_nIoU", "val_Pd"), "validation, against pseudo-masks"),
        (axes[2], ("label_change",), "share of pseudo-mask that an update changed"),
    ):
        for name in names:
            points = [(i + 1, entry[name]) for i, entry in enumerate(history) if name in entry]
            if points:
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", label=name)
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_title(label, fontsize=8)
        axis.tick_params(labelsize=7)
        if axis.lines:
            axis.legend(fontsize=7)
        else:
            axis.text(0.5, 0.5, "not used by this method", ha="center", transform=axis.transAxes, fontsize=8)
    if weights is not None:
        axes[3].bar(np.arange(len(weights)), weights)
        axes[3].axhline(1.0, color="grey", lw=0.8)
        axes[3].set_title("learned weight of each cluster", fontsize=8)
        axes[3].tick_params(labelsize=7)


def _image(axis: "Axes", image: NDArray[np.float32], title: str) -> None:
    low, high = np.quantile(image, [0.01, 0.999])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-3))
    axis.set_title(title, fontsize=7)


def _outline(axis: "Axes", mask: NDArray[np.bool_], colour: str, label: str, style: str = "-") -> None:
    """Draw the pixel borders of a mask (contour lines would cut through the few pixels of a small target)."""
    padded = np.pad(mask, 1).astype(np.int8)
    segments = []
    for r, c in zip(*np.nonzero(np.diff(padded, axis=0)), strict=True):
        segments.append(((c - 1.5, c - 0.5), (r - 0.5, r - 0.5)))
    for r, c in zip(*np.nonzero(np.diff(padded, axis=1)), strict=True):
        segments.append(((c - 0.5, c - 0.5), (r - 1.5, r - 0.5)))
    for x, y in segments:
        axis.plot(x, y, color=colour, lw=1.2, ls=style)
    axis.plot([], [], color=colour, ls=style, label=label)


def _zoom(sample: Sample) -> tuple[slice, slice]:
    """Window of 2 ZOOM pixels around the first point, shifted into the image."""
    centre = sample.points[0] if len(sample.points) else np.array(sample.image.shape) // 2
    starts = [max(min(int(c) - ZOOM, n - 2 * ZOOM), 0) for c, n in zip(centre, sample.image.shape, strict=True)]
    return slice(starts[0], starts[0] + 2 * ZOOM), slice(starts[1], starts[1] + 2 * ZOOM)
