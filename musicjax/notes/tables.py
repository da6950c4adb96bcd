"""Notes as text: CSV for spreadsheets, JSON for programs.

Times are written to the microsecond. CSV holds the notes alone; JSON also bends and pedals.
"""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicjax.errors import DataError
from musicjax.files import atomic_write
from musicjax.notes.bends import Bends
from musicjax.notes.notes import DEFAULT_VELOCITY, Notes, Pedal

CSV_COLUMNS = ("onset_s", "offset_s", "pitch", "velocity", "program", "is_drum")
PEDAL_COLUMNS = ("time_s", "number", "value", "program")
JSON_FORMAT = "musicjax.notes/1"
# What other collections call the same columns, in lower case letters only.
_ALIASES = {
    "onset": ("onsets", "onset", "onsettime", "start", "starts", "starttime"),
    "offset": ("offsets", "offset", "offsettime", "end", "ends", "endtime"),
    "sustained": ("offsetwithpedals", "offsetwithpedal"),
    "duration": ("durations", "duration"),
    "pitch": ("pitch", "midipitch", "midi", "midinote", "note"),
    "pitch_hz": ("pitchhz", "frequencyhz", "frequency", "hz"),
    "velocity": ("velocity", "midivelocity"),
    "program": ("program", "midiprogram", "instrument"),
    "is_drum": ("isdrum", "drum"),
}
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no", "")

PathName = str | os.PathLike[str]


def write_csv(notes: Notes, target: PathName | io.TextIOBase) -> None:
    """Write notes as CSV: onset_s,offset_s,pitch,velocity,program,is_drum (0 or 1).

    Pedals have no place in it: write `notes.sustained()` for the offsets that are heard, or MIDI
    or JSON to keep the pedals. Errors: OutputError when the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for note in notes:
        times = (f"{note.onset_s:.6f}", f"{note.offset_s:.6f}")
        writer.writerow([*times, note.pitch, note.velocity, note.program, int(note.is_drum)])
    _put(text.getvalue(), target)


def read_csv(source: PathName | io.TextIOBase, *, sustained: bool = False) -> Notes:
    """Read sorted notes from CSV with a header; separated by comma, semicolon or tab.

    Needed are an onset, an offset or duration, and a pitch (MIDI number, or Hz, taken to the
    nearest semitone); velocity, program and is_drum are read when there. Columns are known by the
    names that common collections use, such as onset_s, start_time, midi_pitch or pitch_hz; others
    are passed over. With `sustained` the offsets come from offset_with_pedal_s where that exists.

    Errors: DataError when the file is missing, has no such columns or a cell is no number.
    """
    text, name = _get(source)
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{name} is empty; a CSV of notes begins with {','.join(CSV_COLUMNS)}.")
    separator = max(",;\t", key=lines[0].count)
    table = list(csv.reader(lines, delimiter=separator))
    header = [re.sub(r"[^a-z]", "", column.lower()) for column in table[0]]
    places = {
        role: next(header.index(alias) for alias in aliases if alias in header)
        for role, aliases in _ALIASES.items()
        if any(alias in header for alias in aliases)
    }
    for roles in (("onset",), ("offset", "duration"), ("pitch", "pitch_hz")):
        if not any(role in places for role in roles):
            raise DataError(
                f"{name} has no column for {' or '.join(roles)}: its header is "
                f"{separator.join(table[0])!r}, expected {','.join(CSV_COLUMNS)}."
            )
    width = 1 + max(places.values())
    for number, row in enumerate(table[1:], start=2):
        if len(row) < width:
            raise DataError(f"{name} row {number} has {len(row)} cells; the header asks for more.")
    columns = {
        role: _cells([row[place] for row in table[1:]], role, name)
        for role, place in places.items()
    }
    return _from_columns(columns, sustained)


def _cells(cells: list[str], role: str, name: str) -> np.ndarray:
    if role == "is_drum":
        lower = [cell.strip().lower() for cell in cells]
        wrong = [cell for cell in lower if cell not in _TRUE + _FALSE]
        if wrong:
            raise DataError(f"{name} has {wrong[0]!r} as is_drum; expected 0 or 1.")
        return np.array([cell in _TRUE for cell in lower], dtype=bool)
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise DataError(f"{name} has a {role} that is no number ({error}).") from None


def _from_columns(columns: Mapping[str, np.ndarray], sustained: bool) -> Notes:
    onset_s = columns["onset"]
    offset_s = columns["offset"] if "offset" in columns else onset_s + columns["duration"]
    if sustained and "sustained" in columns:
        offset_s = columns["sustained"]
    if "pitch" in columns:
        pitch = columns["pitch"]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # what is not above 0 Hz fails below
            pitch = np.rint(69 + 12 * np.log2(columns["pitch_hz"] / 440))
    return Notes.from_arrays(
        onset_s,
        offset_s,
        pitch,
        columns.get("velocity", DEFAULT_VELOCITY),
        columns.get("program", 0),
        columns.get("is_drum", False),
    ).sorted()


def as_dict(notes: Notes) -> dict[str, Any]:
    """Notes and pedals as what JSON holds: a list of objects each, and the duration.

    A note that bends has its points in `bend`: [[time_s, semitones], …].
    """
    document: dict[str, Any] = {
        "format": JSON_FORMAT,
        "duration_s": round(notes.duration_s, 6),
        "notes": [
            {
                **note._asdict(),
                "onset_s": round(note.onset_s, 6),
                "offset_s": round(note.offset_s, 6),
            }
            for note in notes
        ],
    }
    if notes.bends is not None:
        for index in np.flatnonzero(notes.bends.count):
            points = np.round(np.stack(notes.bends.of(int(index)), axis=1), 6)
            document["notes"][index]["bend"] = points.tolist()
    if notes.pedal is not None:
        time_s, *others = notes.pedal.columns()
        rows = zip(np.round(time_s, 6).tolist(), *(c.tolist() for c in others), strict=True)
        document["pedal"] = [dict(zip(PEDAL_COLUMNS, row, strict=True)) for row in rows]
    return document


def from_dict(document: Any, name: str = "The notes document") -> Notes:
    """The notes of what `as_dict` made; velocity, program, is_drum and bend may be absent.

    Errors: DataError when it has another form; `name` is how the error calls it.
    """
    try:
        notes, moves = document["notes"], document.get("pedal", [])
        defaults = {"velocity": DEFAULT_VELOCITY, "program": 0, "is_drum": False}
        pedal = Pedal.from_arrays(
            *([move[key] for move in moves] for key in ("time_s", "value", "number", "program"))
        )
        rows = [{**defaults, **note} for note in notes]
        columns = {key: [row[key] for row in rows] for key in CSV_COLUMNS}
        bends = Bends.from_points([row.get("bend", ()) for row in rows])
        return Notes.from_arrays(**columns, pedal=pedal, bends=bends)
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{name} is not a document of notes ({reason}): expected an object with "
            f"'notes', a list of objects with onset_s, offset_s and pitch."
        ) from None


def write_json(notes: Notes, target: PathName | io.TextIOBase) -> None:
    """Write notes and pedals as JSON, one note a line. Errors: OutputError."""
    document = as_dict(notes)
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row) for row in value)
            parts.append(f'"{key}": [\n  {rows}\n ]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    _put("{" + ",\n ".join(parts) + "}\n", target)


def read_json(source: PathName | io.TextIOBase) -> Notes:
    """Read what `write_json` wrote, in the order it was written.

    Errors: DataError when the file is missing, is not JSON or has another form.
    """
    text, name = _get(source)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}.") from None
    return from_dict(document, name)


def _put(text: str, target: PathName | io.TextIOBase) -> None:
    if isinstance(target, str | os.PathLike):
        with atomic_write(target) as file:
            file.write(text.encode())
    else:
        target.write(text)


def _get(source: PathName | io.TextIOBase) -> tuple[str, str]:
    if not isinstance(source, str | os.PathLike):
        return source.read(), str(getattr(source, "name", "The stream"))
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8-sig"), f"'{path}'"
    except FileNotFoundError:
        raise DataError(f"There is no file '{path}'. Check the name.") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not text in UTF-8; is it another kind of file?") from None
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
