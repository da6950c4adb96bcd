"""How pictures look: colours, axes and how they are put on disk."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from musicjax.files import atomic_write

Target = str | os.PathLike[str] | io.BufferedIOBase | BinaryIO
DPI = 144
WIDTH_IN = 14.0
PAPER, PANEL, INK, FAINT = "#0d1016", "#12161f", "#d9dee8", "#5d6778"
SOUND = LinearSegmentedColormap.from_list(
    "sound", ["#10141d", "#141c2b", "#1b2d47", "#29506f", "#4d8797", "#a5cfc9"]
)
TOUCH = LinearSegmentedColormap.from_list(  # soft to loud
    "touch", ["#7a3b6e", "#c0486a", "#ee7752", "#fbb659", "#fff0b3"]
)
INSTRUMENTS = (
    "#fbb659",
    "#6fc7e8",
    "#e86f9b",
    "#9fd66a",
    "#b795f0",
    "#f0866a",
    "#5fd6b4",
    "#e5d36b",
)
HIT, MISS, EXTRA = "#7fd68a", "#ff5c6c", "#ffb454"
PEDAL_COLOUR, SOFT_COLOUR = "#6fa8dc", "#b795f0"


def new_figure(height_in: float) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(axes: Axes) -> None:
    axes.set_facecolor(PANEL)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=FAINT, labelsize=8, length=0, pad=4)


def time_axis(axes: Axes, duration_s: float) -> None:
    """Ticks at round times, as minutes and seconds."""
    steps = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
    step = next((step for step in steps if duration_s / step <= 22), steps[-1])
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time_s, _: _clock(time_s, step)))


def _clock(time_s: float, step_s: float) -> str:
    minutes, seconds = divmod(round(time_s, 3), 60)
    decimals = 0 if step_s >= 1 else 2
    width = 2 if not decimals else 5
    return f"{int(minutes)}:{seconds:0{width}.{decimals}f}"


def boxes(left: np.ndarray, right: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
    """(boxes, 4, 2) corners of upright rectangles."""
    corners = [(left, low), (left, high), (right, high), (right, low)]
    return np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)


def instrument_colour(program: int, programs: Sequence[int]) -> str:
    place = programs.index(program) if program in programs else 0
    return INSTRUMENTS[place % len(INSTRUMENTS)]


def one_colour(colour: str, count: int, alpha: float) -> np.ndarray:
    return np.tile(to_rgba(colour, alpha), (count, 1))


def level_range(values: np.ndarray) -> tuple[float, float]:
    """Darkest and brightest value: a few outliers and the floor of silence count for nothing."""
    sample = values[:: max(1, len(values) // 4000)]
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, [35, 99.8]) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def finish(figure: Figure, path: Target | None) -> Figure:
    if path is None:
        return figure
    if not isinstance(path, str | os.PathLike):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, facecolor=PAPER)
        path.write(picture.getvalue())
        return figure
    suffix = Path(path).suffix.lower().lstrip(".")
    kind = suffix if suffix in ("pdf", "svg") else "png"
    with atomic_write(path) as file:
        figure.savefig(file, format=kind, dpi=DPI, facecolor=PAPER)
    return figure
