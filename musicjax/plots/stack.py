"""What several models hear in one recording, one above the other on one time axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from musicjax.audio.io import Audio
from musicjax.errors import DataError
from musicjax.metrics.transcription import match_note_pairs, note_scores
from musicjax.notes.notes import Notes
from musicjax.plots.rows import (
    GAP_IN,
    KEYS,
    LEFT,
    SHORTEST_ROW_S,
    TOP_IN,
    WIDTH,
    Layer,
    draw_keyboard,
    draw_notes,
    heading,
    matched_layers,
    pitch_range,
    roll_background,
    row_times,
)
from musicjax.plots.sound import PitchLevels, pitch_levels
from musicjax.plots.style import (
    EXTRA,
    FAINT,
    HIT,
    INK,
    MISS,
    TOUCH,
    Target,
    finish,
    level_range,
    new_figure,
    one_colour,
    time_axis,
)

NAME_IN, BETWEEN_IN = 0.24, 0.1  # above each roll its name; between rolls of one row
SEMITONE_IN, SEMITONE_IN_ROWS = 0.046, 0.036  # of a roll that stands alone, and of one of many
DIMMED = 0.5  # the sound lies further back than in a single roll: notes are to be compared
AGREED, SHARED = "#eef2fa", "#b795f0"  # heard by all models, and by some


@dataclass(frozen=True)
class _Roll:
    """One roll of the stack: its name, a line about it, and how its notes are drawn."""

    name: str
    told: str
    layers: Sequence[Layer]


def plot_transcriptions(
    estimates: Mapping[str, Notes],
    *,
    reference: Notes | None = None,
    audio: Audio | None = None,
    onset_tolerance_s: float = 0.05,
    start_s: float = 0.0,
    end_s: float | None = None,
    row_s: float | None = None,
    title: str | None = None,
    path: Target | None = None,
) -> Figure:
    """Draw what each of several models heard, one above the other, over the sound when given.

    With a reference, it stands on top, and notes are coloured as in `plot_comparison`: hits green,
    misses hollow red, extras amber. Without one, they are coloured by agreement: white where all
    models hear the note (same pitch, onsets within `onset_tolerance_s`), violet where some do,
    amber where one alone does. Drums are left out. A long recording is set in rows of at most 30 s,
    each a stack of its own.

    Args:
      estimates: name -> notes, drawn in that order.
      reference: the notes that were played.
      The other arguments are those of `plot_piano_roll`.

    Errors: DataError when there is nothing to compare or the part is empty; OutputError.
    """
    if not estimates:
        raise DataError("There are no transcriptions to draw; give at least one.")
    shown = {name: _pitched(notes, start_s, end_s) for name, notes in estimates.items()}
    truth = None if reference is None else _pitched(reference, start_s, end_s)
    if truth is None:
        rolls, legend = _by_agreement(shown, onset_tolerance_s)
    else:
        rolls, legend = _by_truth(truth, shown, onset_tolerance_s)
    picture = pitch_levels(audio, None, None, None)
    everything = Notes.concat([layer.notes for roll in rolls for layer in roll.layers])
    heard_s = start_s if picture is None else start_s + picture.duration_s
    if end_s is None:
        end_s = max(everything.duration_s, heard_s, start_s + SHORTEST_ROW_S)
    if end_s <= start_s:
        raise DataError(f"There is nothing to draw from {start_s} s to {end_s} s.")
    summary = f"{len(shown)} models" + ("" if truth is None else f" against {len(truth)} notes")
    figure = _draw(
        rolls, picture, row_times(start_s, end_s, row_s), start_s, (title, summary), legend
    )
    return finish(figure, path)


def _pitched(notes: Notes, start_s: float, end_s: float | None) -> Notes:
    notes = replace(notes[~notes.is_drum], pedal=None, bends=None)  # rolls compare the keys
    return notes if end_s is None else notes.slice(start_s, end_s)


def _by_truth(
    truth: Notes, estimates: Mapping[str, Notes], tolerance_s: float
) -> tuple[list[_Roll], list[tuple[str, str]]]:
    """The truth and each estimate's hits, misses and extras."""
    heard = np.zeros(len(truth), int)  # by how many models
    rolls = []
    for name, notes in estimates.items():
        layers, pairs = matched_layers(truth, notes, tolerance_s)
        heard[pairs[:, 0]] += 1
        scores = note_scores(truth, notes, tolerance_s)
        told = (
            f"{len(pairs)} hits, {len(truth) - len(pairs)} missed, {len(notes) - len(pairs)} extra "
            "· onset F1 "
            f"{scores.onset_f1:.3f} · with offset {scores.onset_offset_f1:.3f}"
        )
        rolls.append(_Roll(name, told, layers))
    unheard = heard == 0
    colours = TOUCH(truth.velocity / 127)
    layers = [
        Layer(truth[~unheard], colours[~unheard]),
        Layer(truth[unheard], one_colour(MISS, int(unheard.sum()), 1.0)),
    ]
    told = f"{len(truth)} notes, brighter is louder" + (
        f"; red, missed by all: {unheard.sum()}" if unheard.any() else ""
    )
    played = _Roll("what was played", told, layers)
    return [played, *rolls], [("hit", HIT), ("missed", MISS), ("extra", EXTRA)]


def _by_agreement(
    estimates: Mapping[str, Notes], tolerance_s: float
) -> tuple[list[_Roll], list[tuple[str, str]]]:
    """Each estimate, coloured by how many of the others hear the same note."""
    if len(estimates) == 1:
        ((name, notes),) = estimates.items()
        layer = Layer(notes, TOUCH(notes.velocity / 127))
        return [_Roll(name, f"{len(notes)} notes", [layer])], []
    rolls = []
    for name, notes in estimates.items():
        also = np.zeros(len(notes), int)
        for other, theirs in estimates.items():
            if other != name:
                pairs = match_note_pairs(notes, theirs, tolerance_s, offset_ratio=None)
                also[pairs[:, 0]] += 1
        groups = [
            (also == len(estimates) - 1, AGREED),
            ((also > 0) & (also < len(estimates) - 1), SHARED),
            (also == 0, EXTRA),
        ]
        layers = [
            Layer(notes[here], one_colour(colour, int(here.sum()), 0.9)) for here, colour in groups
        ]
        told = f"{len(notes)} notes, {(also == 0).sum()} that it alone hears"
        rolls.append(_Roll(name, told, layers))
    legend = [("all hear it", AGREED), ("some", SHARED), ("one alone", EXTRA)]
    return rolls, legend if len(estimates) > 2 else [legend[0], legend[2]]


def _draw(
    rolls: Sequence[_Roll],
    picture: PitchLevels | None,
    rows: Sequence[tuple[float, float]],
    start_s: float,
    words: tuple[str | None, str],
    legend: Sequence[tuple[str, str]],
) -> Figure:
    low, high = pitch_range(Notes.concat([layer.notes for roll in rolls for layer in roll.layers]))
    roll_in = (high - low + 1) * (SEMITONE_IN if len(rows) == 1 else SEMITONE_IN_ROWS)
    row_in = len(rolls) * (NAME_IN + roll_in) + (len(rolls) - 1) * BETWEEN_IN
    height_in = TOP_IN + len(rows) * (row_in + GAP_IN)
    figure = new_figure(height_in)
    heading(figure, height_in, *words, legend, ("pp", "ff"))
    darkest, brightest = (0.0, 1.0) if picture is None else level_range(picture.levels)
    levels = (darkest, brightest + DIMMED * (brightest - darkest))
    y = height_in - TOP_IN
    for begin_s, end_s in rows:
        width = WIDTH * (end_s - begin_s) / (rows[0][1] - rows[0][0])
        drawn: list[Axes] = []
        for roll in rolls:
            y -= NAME_IN
            _name(figure, roll, y / height_in, width, 0.07 / height_in)
            y -= roll_in
            axes = figure.add_axes((LEFT, y / height_in, width, roll_in / height_in))
            roll_background(axes, low, high, picture, levels, start_s, (begin_s, end_s))
            for layer in roll.layers:
                draw_notes(axes, layer, begin_s, end_s)
            keys = (LEFT - KEYS, y / height_in, KEYS - 0.002, roll_in / height_in)
            draw_keyboard(figure.add_axes(keys), low, high)
            drawn.append(axes)
            y -= BETWEEN_IN
        for axes in drawn:
            time_axis(axes, rows[0][1] - rows[0][0])
            axes.grid(axis="x", color="#ffffff", alpha=0.07, linewidth=0.6, zorder=2)
        for axes in drawn[:-1]:
            axes.tick_params(labelbottom=False)
        y -= GAP_IN - BETWEEN_IN
    return figure


def _name(figure: Figure, roll: _Roll, y: float, width: float, above: float) -> None:
    figure.text(LEFT, y + above, roll.name, color=INK, fontsize=10, weight="bold")
    figure.text(LEFT + width, y + above, roll.told, color=FAINT, fontsize=8.5, ha="right")
