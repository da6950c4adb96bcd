"""The screen of `musicjax listen`, as a picture: a recording is heard at its own speed, and drawn.

    python examples/make_listen_picture.py [MODEL [SECONDS [FILE]]]

writes `listen.png` beside this file. What is drawn is what a terminal of 100 by 28 characters
shows after so many seconds of the file, or of `bach_prelude.flac`; figures are those of the machine
it runs on.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from musicjax.infer.live import Listening
from musicjax.infer.sources import PlayedFile
from musicjax.tasks.live import load_streamer, resolve
from musicjax.terminal.canvas import PAPER, Line
from musicjax.terminal.live import LiveView

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 100, 28  # characters
CELL = (18, 9)  # pixels of a character, high and wide
DPI = 144


def main(
    model: str | None = None,
    seconds: str = "14",
    file: str = str(HERE / "bach_prelude.flac"),
) -> None:
    """Listen, and draw the last screen."""
    name, pitch = resolve(model)
    streamer = load_streamer(name)
    source = PlayedFile(file)
    console = Console(width=WIDTH, height=HEIGHT)
    told = Path(name).name.removesuffix(".safetensors")  # of a file; names have dots of their own
    view = LiveView(told, source.name, ["take.mid"], pitch=pitch, console=console)
    with Listening(streamer, source) as listening:
        for moment in listening.moments():
            view.take(moment)
            if moment.figures.time_s >= float(seconds):
                break
    draw(view.lines(WIDTH, HEIGHT), HERE / "listen.png")


def draw(lines: list[Line], path: Path) -> None:
    """Lines of styled characters as a PNG."""
    high, wide = CELL
    pixels = np.zeros((len(lines) * high, WIDTH * wide, 3), np.uint8)
    figure = Figure(figsize=(pixels.shape[1] / DPI, pixels.shape[0] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, line in enumerate(lines):
        column = 0
        for part in line:
            front, back = (_rgb(c) for c in (part.style.color, part.style.bgcolor))
            for character in part.text:
                cell = pixels[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                cell[:] = back
                if not _block(cell, character, front):
                    place = ((column + 0.5) * wide, (row + 0.5) * high)
                    _write(axes, place, character, front)
                column += 1
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    figure.savefig(path, dpi=DPI, facecolor=f"#{PAPER:06x}")


def _block(cell: np.ndarray, character: str, colour: tuple[int, int, int]) -> bool:
    """Draw what is a block of a cell; whether it was."""
    high, wide = CELL
    left, bottom = "▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█"
    if character == "▀":
        cell[: high // 2] = colour
    elif character in left:
        cell[:, : round((left.index(character) + 1) / 8 * wide)] = colour
    elif character in bottom:
        cell[high - round((bottom.index(character) + 1) / 8 * high) :] = colour
    bits = ord(character) - 0x2800
    if 0 <= bits < 256:  # braille, which the font does not have
        order = ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1))
        for place, (row, column) in enumerate(order):
            if bits >> place & 1:
                y, x = round((row + 0.5) * high / 4), round((column + 0.5) * wide / 2)
                cell[y - 1 : y + 2, x - 1 : x + 2] = colour
    return 0 <= bits < 256 or character in f" ▀{left}{bottom}"


def _write(axes: Any, place: tuple[float, float], character: str, colour: tuple) -> None:
    style = {"family": "DejaVu Sans Mono", "size": 7.0, "ha": "center", "va": "center_baseline"}
    axes.text(*place, character, color=[part / 255 for part in colour], **style)


def _rgb(colour: Any) -> tuple[int, int, int]:
    return tuple(colour.triplet)


if __name__ == "__main__":
    main(*sys.argv[1:])
