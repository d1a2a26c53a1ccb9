"""Tables and pictures of many runs: rows, seeds, mean and deviation, paired tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.checkpoint import write_atomically
from istd.figures import new_figure, save_figure
from istd.files import write_json
from istd.runs.metrics import Metrics

SCALES = {"IoU": 100.0, "nIoU": 100.0, "Pd": 100.0, "Fa": 1e6}


def markdown(found: Mapping[str, Sequence[Metrics]], note: str) -> str:
    """Mean and deviation over seeds; difference of IoU to the first row with a paired t-test; stability.

    `IoU moves`: change of validation IoU, in points, between evaluations in the second half of a run. `labels move`:
    share of pseudo-mask foreground, in percent, that an update turns over.
    """
    reference, *_ = found
    lines = [note, "", "| row | seeds | IoU % | nIoU % | Pd % | Fa 1e-6 | - first, IoU | p | IoU moves | labels move |"]
    lines.append("|---" * 10 + "|")
    base = _values(found[reference], "IoU")
    for name, runs in found.items():
        cells = [mean_std(_values(runs, key)) for key in SCALES]
        gain = _values(runs, "IoU") - base
        p = p_value(gain)
        moves = [100 * float(np.mean([r["stability"][key] for r in runs])) for key in ("late_change", "label_change")]
        cells += ["" if name == reference else f"{gain.mean():+.1f}", p, *(f"{m:.1f}" for m in moves)]
        name += " (knows mask areas)" if any(r.get("leaks_mask_area") for r in runs) else ""
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Sequence[Metrics]], path: Path) -> None:
    """Every seed as a dot and the mean as a bar, IoU and nIoU."""
    figure = new_figure(9, 1.4 + 0.32 * len(found))
    axes: Any = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, ("IoU", "nIoU"), strict=True):
        for y, runs in enumerate(found.values()):
            values = _values(runs, key)
            axis.plot(values, np.full(len(values), y), "o", color="tab:blue", alpha=0.6, ms=4)
            axis.plot([values.mean()], [y], "|", color="black", ms=14)
        axis.axvline(_values(next(iter(found.values())), key).mean(), color="0.7", lw=0.8, zorder=0)
        axis.set_xlabel(f"student {key}, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(found)), list(found), fontsize=8)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def write_grid(found: Mapping[str, Sequence[Metrics]], out: Path, name: str, note: str, after: str = "") -> str:
    """Write `NAME.md` (note, table, what comes after), `NAME.json` and `NAME.png` into `out`; return the page."""
    text = markdown(found, note) + after
    write_atomically(out / f"{name}.md", lambda file: file.write(text.encode()))
    write_json(out / f"{name}.json", {row: list(runs) for row, runs in found.items()})
    draw(found, out / f"{name}.png")
    return text


def _values(runs: Sequence[Metrics], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return SCALES[key] * np.array([(r["student"] or {})[key] for r in runs], dtype=np.float64)


def mean_std(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Mean and, of more than one value, standard deviation, as tables show them."""
    return f"{values.mean():.1f}" + (f" +- {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def p_value(gain: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Probability p of a paired t-test, from the differences of the pairs; empty where there is none."""
    from scipy.stats import ttest_1samp

    return f"{ttest_1samp(gain, 0).pvalue:.2f}" if len(gain) > 1 and np.ptp(gain) > 0 else ""
