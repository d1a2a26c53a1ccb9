"""The one room that draws with matplotlib, which is imported when the first figure is asked for."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bilevel.checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width x height` inches that needs no screen and no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), constrained_layout=True)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path, format: str = "png") -> None:
    """Write a figure atomically, as `"png"` or `"jpeg"`."""
    write_atomically(path, partial(figure.savefig, format=format, dpi=110))
