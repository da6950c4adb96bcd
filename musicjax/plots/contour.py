"""The pitch of a voice, drawn over what was heard."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from musicjax.audio.io import Audio
from musicjax.notes.contour import Contour
from musicjax.plots.rows import Layer, draw_rows
from musicjax.plots.sound import pitch_levels
from musicjax.plots.style import TOUCH, Target, finish, one_colour

NOTE_COLOUR = "#6fc7e8"


def plot_contour(
    contour: Contour,
    *,
    audio: Audio | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    row_s: float | None = None,
    title: str | None = None,
    path: Target | None = None,
) -> Figure:
    """Draw pitch by time on the axis of a keyboard, over the sound when it is given.

    The line is brighter where the tracker is surer; the boxes behind it are the notes that are
    sung. A long recording is set in rows of at most 30 s, or of `row_s`.

    Args:
      contour: what to draw.
      audio: the sound from `start_s` on; its harmonics are drawn on the same axis.
      start_s, end_s: the part to draw; to the end of the contour by default.
      title: a line above the picture.
      path: file or binary stream to write to as well.

    Errors: DataError when the part is empty; OutputError.
    """
    end_s = len(contour) * contour.hop_s if end_s is None else end_s
    shown = contour.slice(start_s, max(end_s, start_s))
    notes = shown.to_notes(bends=False)
    layer = Layer(notes, one_colour(NOTE_COLOUR, len(notes), 0.22))

    def line(axes: Axes, begin_s: float, finish_s: float) -> None:
        _draw_line(axes, shown.slice(begin_s - shown.hop_s, finish_s + shown.hop_s))

    picture = pitch_levels(audio, None, None, None)
    part, summary = (start_s, end_s), shown.summary()
    figure = draw_rows(
        [layer], picture, part, row_s, title, [], summary, over=line, scale=("unsure", "sure")
    )
    return finish(figure, path)


def _draw_line(axes: Axes, contour: Contour) -> None:
    """One stroke from each voiced frame to the next, a dot where a frame stands alone."""
    midi, joined = contour.midi, contour.voiced[:-1] & contour.voiced[1:]
    points = np.stack([contour.time_s, midi], axis=1)
    strokes = np.stack([points[:-1], points[1:]], axis=1)[joined]
    colours = TOUCH(np.clip(contour.confidence, 0, 1) * 0.75 + 0.25)
    for width, own in ((3.2, to_rgba("#0d1016", 0.55)), (1.7, None)):  # a dark rim, then the line
        axes.add_collection(
            LineCollection(
                list(strokes),
                colors=[own] if own else colours[:-1][joined],
                linewidths=width,
                capstyle="round",
                zorder=6,
            )
        )
    left = np.append(False, joined)
    alone = contour.voiced & ~left & ~np.append(joined, False) if len(contour) else contour.voiced
    axes.scatter(contour.time_s[alone], midi[alone], s=3, c=colours[alone], linewidths=0, zorder=6)
