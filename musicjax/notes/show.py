"""How notes show themselves: a table in the terminal, a small piano roll in a notebook."""

from html import escape
from typing import TYPE_CHECKING

from musicjax.notes.notes import Notes, pitch_name
from musicjax.notes.programs import program_name

if TYPE_CHECKING:
    from rich.table import Table

ROWS_SHOWN = 12
NOTES_DRAWN = 4000  # more make a notebook slow
WIDTH, HEIGHT = 760, 150  # of the drawing, in CSS pixels


def rich_table(notes: Notes) -> "Table":
    """The first notes as a rich table under a one-line summary."""
    from rich.table import Table

    table = Table(title=notes.summary(), title_justify="left", title_style="bold")
    for column in ("onset s", "offset s", "pitch", "velocity"):
        table.add_column(column, justify="right")
    table.add_column("instrument")
    for note in notes[:ROWS_SHOWN]:
        name = "drums" if note.is_drum else program_name(note.program)
        pitch = str(note.pitch) if note.is_drum else f"{pitch_name(note.pitch)} ({note.pitch})"
        times = f"{note.onset_s:.3f}", f"{note.offset_s:.3f}"
        table.add_row(*times, pitch, str(note.velocity), name)
    if len(notes) > ROWS_SHOWN:
        table.caption = f"and {len(notes) - ROWS_SHOWN} more"
    return table


def html(notes: Notes) -> str:
    """A piano roll as inline SVG under the summary; louder notes are more opaque."""
    caption = f"<div><b>Notes</b> {escape(notes.summary())}</div>"
    if not len(notes):
        return caption
    start_s = float(notes.onset_s.min())
    scale = WIDTH / max(notes.duration_s - start_s, 1e-3)
    low, high = int(notes.pitch.min()) - 1, int(notes.pitch.max()) + 1
    row = HEIGHT / (high - low + 1)
    marks = []
    for note in notes[:NOTES_DRAWN]:
        x, y = (note.onset_s - start_s) * scale, (high - note.pitch) * row
        width = max((note.offset_s - note.onset_s) * scale, 1.0)
        opacity = 0.35 + 0.65 * note.velocity / 127
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{row:.1f}" rx="1" '
            f'opacity="{opacity:.2f}"/>'
        )
    if len(notes) > NOTES_DRAWN:
        caption += f"<div>The first {NOTES_DRAWN} notes are drawn.</div>"
    return (
        f'{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="background:#14161c;max-width:100%" fill="#f2b35c">{"".join(marks)}</svg>'
    )
