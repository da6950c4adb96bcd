"""The pictures one asks for: a piano roll, a comparison, a spectrogram."""

import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from musicjax.audio.io import Audio
from musicjax.errors import DataError
from musicjax.notes.notes import Notes
from musicjax.notes.programs import program_name
from musicjax.plots.rows import Layer, draw_rows, matched_layers
from musicjax.plots.sound import pitch_levels
from musicjax.plots.style import (
    EXTRA,
    FAINT,
    HIT,
    INK,
    MISS,
    TOUCH,
    Target,
    finish,
    instrument_colour,
    level_range,
    new_figure,
    quiet_axes,
    time_axis,
)


def plot_piano_roll(
    notes: Notes,
    *,
    audio: Audio | None = None,
    spectrogram: Float[np.ndarray, "T F"] | None = None,
    frequencies_hz: Float[np.ndarray, " bins"] | None = None,
    frames_per_s: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    row_s: float | None = None,
    title: str | None = None,
    path: Target | None = None,
) -> Figure:
    """Draw notes by time and pitch, over the sound when it is given.

    One program is coloured by velocity, several by instrument. Thin tails show how long the
    pedal holds a note; the lane below shows the pedal. Drums are diamonds. A long piece is set in
    rows of at most 30 s, or of `row_s`.

    Args:
      notes: what to draw, with pedals if there are any.
      audio: the sound from `start_s` on; its harmonics are drawn on the pitch axis.
      spectrogram: in place of audio, log magnitudes by frame and frequency, first frame at start_s,
        with `frequencies_hz` of its columns, ascending, and `frames_per_s` of its rows.
      start_s, end_s: the part to draw; to the end of notes and sound by default.
      title: a line above the picture.
      path: file or binary stream to write to as well.

    Errors: DataError when the part is empty or the spectrogram's axes do not fit; OutputError.
    """
    shown = notes if end_s is None else notes.slice(start_s, end_s)
    programs = sorted(set(shown.program[~shown.is_drum].tolist()))
    if len(programs) > 1:
        colours = np.array([to_rgba(instrument_colour(p, programs)) for p in shown.program])
        colours = colours.reshape(-1, 4)
        colours[:, 3] = 0.45 + 0.55 * shown.velocity / 127
        legend = [(program_name(p), instrument_colour(p, programs)) for p in programs]
    else:
        colours, legend = TOUCH(shown.velocity / 127), []
    picture = pitch_levels(audio, spectrogram, frequencies_hz, frames_per_s)
    figure = draw_rows(
        [Layer(shown, colours)], picture, (start_s, end_s), row_s, title, legend, shown.summary()
    )
    return finish(figure, path)


def plot_comparison(
    reference: Notes,
    estimate: Notes,
    *,
    audio: Audio | None = None,
    onset_tolerance_s: float = 0.05,
    start_s: float = 0.0,
    end_s: float | None = None,
    row_s: float | None = None,
    title: str | None = None,
    path: Target | None = None,
) -> Figure:
    """Draw an estimate against its reference: hits green, misses hollow red, extras amber.

    A hit is an estimated note whose pitch is right and whose onset is within `onset_tolerance_s`
    of its own reference note (`musicjax.metrics`); it is drawn where the estimate has it. Drums are
    left out. The other arguments are those of `plot_piano_roll`.
    """
    from musicjax.metrics.transcription import note_scores

    reference, estimate = (notes[~notes.is_drum] for notes in (reference, estimate))
    if end_s is not None:
        reference, estimate = (notes.slice(start_s, end_s) for notes in (reference, estimate))
    layers, pairs = matched_layers(reference, estimate, onset_tolerance_s)
    scores = note_scores(reference, estimate, onset_tolerance_s)
    summary = (
        f"onset F1 {scores.onset_f1:.3f}, precision {scores.onset_precision:.3f}, "
        f"recall {scores.onset_recall:.3f}"
    )
    legend = [
        (f"{len(pairs)} hits", HIT),
        (f"{len(reference) - len(pairs)} missed", MISS),
        (f"{len(estimate) - len(pairs)} extra", EXTRA),
    ]
    picture = pitch_levels(audio, None, None, None)
    figure = draw_rows(layers, picture, (start_s, end_s), row_s, title, legend, summary)
    return finish(figure, path)


def plot_spectrogram(
    spectrogram: Float[np.ndarray, "T F"],
    frames_per_s: float,
    *,
    frequencies_hz: Float[np.ndarray, " bins"] | None = None,
    start_s: float = 0.0,
    title: str | None = None,
    label: str = "",
    path: Target | None = None,
) -> Figure:
    """Draw a spectrogram, or any features by frame, time to the right.

    Args:
      spectrogram: (T, F) values to colour as they are; take logarithms before.
      frames_per_s: frames in a second; the first is at `start_s`.
      frequencies_hz: centre of each column, for the labels; column numbers without it.
      title: a line above; label: unit of the values, beside the colour bar.
    """
    num_frames, num_bins = spectrogram.shape
    if not num_frames or not num_bins:
        raise DataError(f"There is nothing to draw in a spectrogram of {spectrogram.shape}.")
    figure = new_figure(4.6)
    axes = figure.add_axes((0.06, 0.12, 0.86, 0.76))
    quiet_axes(axes)
    low, high = level_range(spectrogram)
    end_s = start_s + num_frames / frames_per_s
    image = axes.imshow(
        spectrogram.T,
        extent=(start_s, end_s, -0.5, num_bins - 0.5),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        interpolation="nearest" if num_bins < 300 else "bilinear",
    )
    time_axis(axes, end_s - start_s)
    if frequencies_hz is not None:
        marks = [
            f
            for f in (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000)
            if frequencies_hz[0] <= f <= frequencies_hz[-1]
        ]
        places = np.interp(marks, frequencies_hz, np.arange(num_bins))
        axes.set_yticks(places, [f"{f // 1000} kHz" if f >= 1000 else f"{f} Hz" for f in marks])
    bar = figure.colorbar(image, cax=figure.add_axes((0.935, 0.12, 0.012, 0.76)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelsize=8, length=0)
    bar.set_label(label, color=FAINT, fontsize=8)
    if title:
        figure.text(0.06, 0.925, title, color=INK, fontsize=13, weight="bold")
    return finish(figure, path)
