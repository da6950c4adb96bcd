"""A piano roll set in rows, as a score is set in systems."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from musicjax.errors import DataError
from musicjax.metrics.transcription import match_note_pairs
from musicjax.notes.notes import PEDAL_DOWN, SOFT, SUSTAIN, Notes, pitch_name
from musicjax.plots.sound import PitchLevels
from musicjax.plots.style import (
    EXTRA,
    FAINT,
    HIT,
    INK,
    MISS,
    PAPER,
    PEDAL_COLOUR,
    SOFT_COLOUR,
    SOUND,
    TOUCH,
    boxes,
    level_range,
    new_figure,
    one_colour,
    quiet_axes,
    time_axis,
)

LONGEST_ROW_S, SHORTEST_ROW_S = 30.0, 4.0
MOST_ROWS = 36  # a longer piece gets longer rows, so that the picture can still be opened
TOP_IN, GAP_IN = 0.85, 0.42  # the heading, and below each row its times
PEDAL_IN, DRUMS_IN = 0.22, 0.75
LEFT, WIDTH, KEYS = 0.05, 0.935, 0.026  # of the picture's width
BLACK_KEYS = (1, 3, 6, 8, 10)
# The General MIDI drum map, and the extra keys of electronic kits, by part of the kit.
DRUM_ROWS = (
    ("kick", (35, 36)),
    ("snare", (37, 38, 39, 40)),
    ("toms", (41, 43, 45, 47, 48, 50, 58)),
    ("hi-hat", (22, 26, 42, 44, 46)),
    ("cymbals", (49, 51, 52, 53, 55, 57, 59)),
    ("other", ()),
)
_Lane = Callable[[Axes, Notes, float, float], None]


@dataclass(frozen=True)
class Layer:
    """Notes that are drawn in one way: a colour each, filled or only outlined."""

    notes: Notes
    colours: np.ndarray  # (notes, 4) RGBA
    filled: bool = True


def matched_layers(
    reference: Notes, estimate: Notes, onset_tolerance_s: float
) -> tuple[list[Layer], Int[np.ndarray, "matches 2"]]:
    """Hits, extra notes and missed ones in their colours, and which notes are the hits."""
    pairs = match_note_pairs(reference, estimate, onset_tolerance_s, offset_ratio=None)
    missed = np.setdiff1d(np.arange(len(reference)), pairs[:, 0])
    extra = np.setdiff1d(np.arange(len(estimate)), pairs[:, 1])
    layers = [
        Layer(estimate[pairs[:, 1]], one_colour(HIT, len(pairs), 0.85)),
        Layer(estimate[extra], one_colour(EXTRA, len(extra), 0.95)),
        Layer(reference[missed], one_colour(MISS, len(missed), 1.0), filled=False),
    ]
    return layers, pairs


def draw_rows(
    layers: Sequence[Layer],
    picture: PitchLevels | None,
    part: tuple[float, float | None],
    row_s: float | None,
    title: str | None,
    legend: Sequence[tuple[str, str]],
    summary: str,
    over: Callable[[Axes, float, float], None] | None = None,
    scale: tuple[str, str] = ("pp", "ff"),
) -> Figure:
    start_s, end_s = part
    everything = Notes.concat([layer.notes for layer in layers])
    heard_s = start_s + picture.duration_s if picture is not None else start_s
    if end_s is None:
        end_s = max(everything.duration_s, heard_s)
    if end_s <= start_s:
        if len(everything):
            raise DataError(f"There is nothing to draw from {start_s} s to {end_s} s.")
        end_s = start_s + SHORTEST_ROW_S
    rows = row_times(start_s, end_s, row_s)
    low, high = pitch_range(everything[~everything.is_drum])
    notes = layers[0].notes
    lanes: list[tuple[_Lane, float]] = []  # what is drawn below the roll, and its height
    if notes.pedal is not None:
        lanes.append((_draw_pedal, PEDAL_IN))
    if notes.is_drum.any():
        lanes.append((_draw_drums, DRUMS_IN))
    rolls = not notes.is_drum.all() or not len(notes)
    roll_in = (high - low + 1) * (0.062 if len(rows) == 1 else 0.045) if rolls else 0.0
    row_in = roll_in + sum(height for _, height in lanes)
    height_in = TOP_IN + len(rows) * (row_in + GAP_IN)
    figure = new_figure(height_in)
    heading(figure, height_in, title, summary, legend, scale)
    levels = level_range(picture.levels) if picture is not None else (0.0, 1.0)
    y = height_in - TOP_IN
    for begin_s, finish_s in rows:
        drawn: list[Axes] = []
        width = WIDTH * (finish_s - begin_s) / (rows[0][1] - rows[0][0])
        if rolls:
            y -= roll_in
            drawn.append(figure.add_axes((LEFT, y / height_in, width, roll_in / height_in)))
            roll_background(drawn[0], low, high, picture, levels, start_s, (begin_s, finish_s))
            for layer in layers:
                draw_notes(drawn[0], layer, begin_s, finish_s)
            if over is not None:
                over(drawn[0], begin_s, finish_s)
            keyboard = (LEFT - KEYS, y / height_in, KEYS - 0.002, roll_in / height_in)
            draw_keyboard(figure.add_axes(keyboard), low, high)
        for draw, lane_in in lanes:
            y -= lane_in
            box = (LEFT, y / height_in, width, (lane_in - 0.05) / height_in)
            drawn.append(figure.add_axes(box))
            draw(drawn[-1], notes, begin_s, finish_s)
        for axes in drawn[:-1]:
            axes.set_xticks([])
        time_axis(drawn[-1], rows[0][1] - rows[0][0])
        y -= GAP_IN
    return figure


def row_times(start_s: float, end_s: float, row_s: float | None) -> list[tuple[float, float]]:
    duration_s = end_s - start_s
    if row_s is None:
        count = max(1, math.ceil(duration_s / LONGEST_ROW_S - 1e-9))
        if count > 1:  # whole fives of seconds, so that rows begin on round times
            row_s = 5.0 * math.ceil(duration_s / min(count, MOST_ROWS) / 5.0 - 1e-9)
        else:
            row_s = max(duration_s, SHORTEST_ROW_S)
    if not row_s > 0:
        raise DataError(f"row_s must be above 0 seconds; got {row_s}.")
    count = max(1, math.ceil(duration_s / row_s - 1e-9))
    if count > 4 * MOST_ROWS:
        raise DataError(f"{duration_s:.0f} s in rows of {row_s} s are too many rows; raise row_s.")
    begins = [start_s + i * row_s for i in range(count)]
    # The last row is as long as what is left, but wide enough to be seen.
    shortest_s = row_s if count == 1 else row_s / 20
    last_s = max(end_s, begins[-1] + shortest_s)
    return list(zip(begins, [*begins[1:], last_s], strict=True))


def pitch_range(notes: Notes) -> tuple[int, int]:
    """The pitches shown: those played and some air, at least three octaves."""
    if not len(notes):
        return 36, 84
    low, high = int(notes.pitch.min()) - 3, int(notes.pitch.max()) + 4
    missing = max(0, 36 - (high - low))
    low, high = low - missing // 2, high + (missing + 1) // 2
    return max(low, min(21, int(notes.pitch.min()))), min(high, max(108, int(notes.pitch.max())))


def heading(
    figure: Figure,
    height_in: float,
    title: str | None,
    summary: str,
    legend: Sequence[tuple[str, str]],
    scale: tuple[str, str],
) -> None:
    if title:
        figure.text(LEFT, 1 - 0.38 / height_in, title, color=INK, fontsize=14, weight="bold")
    figure.text(LEFT, 1 - 0.66 / height_in, summary, color=FAINT, fontsize=9)
    if not legend:
        bar = figure.add_axes((0.865, 1 - 0.64 / height_in, 0.09, 0.09 / height_in))
        bar.imshow(np.linspace(0, 1, 128)[None], cmap=TOUCH, aspect="auto")
        bar.set_axis_off()
        for x, text, side in ((0.86, scale[0], "right"), (0.96, scale[1], "left")):
            where = (x, 1 - 0.65 / height_in)
            figure.text(*where, text, color=FAINT, fontsize=9, ha=side, style="italic")
        return
    x = LEFT + WIDTH
    for name, colour in reversed(legend[:8]):
        label = figure.text(x, 1 - 0.66 / height_in, name, color=colour, fontsize=9, ha="right")
        x = figure.transFigure.inverted().transform(label.get_window_extent())[0, 0] - 0.015


def roll_background(
    axes: Axes,
    low: int,
    high: int,
    picture: PitchLevels | None,
    levels: tuple[float, float],
    picture_start_s: float,
    row: tuple[float, float],
) -> None:
    quiet_axes(axes)
    for pitch in range(low, high + 1):
        if picture is None and pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#0f121a", linewidth=0, zorder=0)
        if pitch % 12 == 0:
            axes.axhline(pitch - 0.5, color="#ffffff", alpha=0.13, linewidth=0.6, zorder=2)
    if picture is not None:
        rate, bins = picture.frames_per_s, picture.per_semitone
        first = max(0, math.floor((row[0] - picture_start_s) * rate))
        last = min(len(picture.levels), math.ceil((row[1] - picture_start_s) * rate) + 1)
        bottom = max(0, (low - picture.low) * bins)
        part = picture.levels[first:last, bottom : (high + 1 - picture.low) * bins]
        if part.size:
            from_s = picture_start_s + (first - 0.5) / rate
            base = picture.low + bottom / bins - 0.5
            axes.imshow(
                part.T,
                extent=(from_s, from_s + len(part) / rate, base, base + part.shape[1] / bins),
                origin="lower",
                aspect="auto",
                cmap=SOUND,
                vmin=levels[0],
                vmax=levels[1],
                interpolation="bilinear",
                zorder=1,
            )
    axes.set_xlim(*row)
    axes.set_ylim(low - 0.5, high + 0.5)
    axes.set_yticks([])


def draw_notes(axes: Axes, layer: Layer, start_s: float, end_s: float) -> None:
    notes = layer.notes
    inside = (notes.offset_s >= start_s) & (notes.onset_s < end_s) & ~notes.is_drum
    onset_s, offset_s, pitch = notes.onset_s[inside], notes.offset_s[inside], notes.pitch[inside]
    colours = layer.colours[inside]
    offset_s = np.maximum(offset_s, onset_s + (end_s - start_s) / 1200)  # at least a pixel
    if layer.filled and notes.pedal is not None:
        _draw_tails(axes, notes, layer.colours)
    shapes = boxes(onset_s, offset_s, pitch - 0.4, pitch + 0.4)
    if layer.filled:  # a dark rim parts repeated notes, but would swallow the shortest
        short = offset_s - onset_s < (end_s - start_s) / 250
        edge = np.where(short[:, None], colours, to_rgba(PAPER, 0.9))
    else:
        edge = colours
    axes.add_collection(
        PolyCollection(
            shapes,
            facecolors=colours if layer.filled else "none",
            edgecolors=edge,
            linewidths=0.4 if layer.filled else 1.1,
            zorder=4,
        )
    )


def _draw_tails(axes: Axes, notes: Notes, colours: np.ndarray) -> None:
    """How long the pedal holds each note after its key went up."""
    heard = notes.sustained()
    if len(heard) != len(notes):  # doubled notes were joined: colours no longer go with notes
        return
    held = heard.offset_s > notes.offset_s + 0.02
    lines = [
        [(start, pitch), (end, pitch)]
        for start, end, pitch in zip(
            notes.offset_s[held], heard.offset_s[held], notes.pitch[held], strict=True
        )
    ]
    faded = colours[held] * np.array([1, 1, 1, 0.5])
    axes.add_collection(LineCollection(lines, colors=faded, linewidths=0.8, zorder=3))


def draw_keyboard(axes: Axes, low: int, high: int) -> None:
    """Piano keys as wide as the rows they name, with the Cs labelled."""
    axes.set_facecolor("#cfd4dc")
    axes.set_xlim(0, 1)
    axes.set_ylim(low - 0.5, high + 0.5)
    for pitch in range(low - 1, high + 2):
        degree = pitch % 12
        if degree in BLACK_KEYS:
            axes.add_patch(Rectangle((0, pitch - 0.46), 0.62, 0.92, color="#181b22", linewidth=0))
            axes.plot([0.62, 1], [pitch, pitch], color="#8b93a1", linewidth=0.5)
        elif degree in (0, 5):  # C and F have a white key right below
            axes.axhline(pitch - 0.5, color="#8b93a1", linewidth=0.5)
        if degree == 0 and low <= pitch <= high:
            axes.text(
                -0.12, pitch, pitch_name(pitch), color=INK, fontsize=7.5, ha="right", va="center"
            )
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_pedal(axes: Axes, notes: Notes, start_s: float, end_s: float) -> None:
    quiet_axes(axes)
    axes.set_xlim(start_s, end_s)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.text(
        -0.006,
        0.5,
        "Ped.",
        color=FAINT,
        fontsize=7.5,
        ha="right",
        va="center",
        transform=axes.transAxes,
        style="italic",
    )
    if notes.pedal is None:
        return
    last_s = max(notes.duration_s, float(notes.pedal.time_s[-1]))
    for number, colour, height in ((SUSTAIN, PEDAL_COLOUR, 1.0), (SOFT, SOFT_COLOUR, 0.3)):
        moves = notes.pedal[notes.pedal.number == number]
        begin_s, depth = moves.time_s, moves.value / 127 * height
        end_s_each = np.append(begin_s[1:], max(last_s, end_s))[: len(begin_s)]
        ground = np.zeros_like(depth)
        pressed = (moves.value >= PEDAL_DOWN)[:, None]
        faces = np.where(pressed, to_rgba(colour, 0.7), to_rgba(colour, 0.2))
        presses = boxes(begin_s, end_s_each, ground, depth)
        axes.add_collection(PolyCollection(presses, facecolors=faces, linewidths=0))


def _draw_drums(axes: Axes, notes: Notes, start_s: float, end_s: float) -> None:
    """A row for each part of the kit; larger is louder."""
    quiet_axes(axes)
    axes.set_xlim(start_s, end_s)
    axes.set_ylim(-0.7, len(DRUM_ROWS) - 0.3)
    axes.set_yticks(range(len(DRUM_ROWS)), [name for name, _ in DRUM_ROWS], fontsize=6.5)
    places = {key: row for row, (_, keys) in enumerate(DRUM_ROWS) for key in keys}
    hits = notes[notes.is_drum & (notes.onset_s >= start_s) & (notes.onset_s < end_s)]
    rows = np.array([places.get(int(key), len(DRUM_ROWS) - 1) for key in hits.pitch])
    axes.hlines(range(len(DRUM_ROWS)), start_s, end_s, color="#ffffff", alpha=0.06, linewidth=0.5)
    if len(hits):
        colours = TOUCH(hits.velocity / 127)
        axes.scatter(
            hits.onset_s, rows, s=3 + hits.velocity / 5.0, marker="D", c=colours, linewidths=0
        )
