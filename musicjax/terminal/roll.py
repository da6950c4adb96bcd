"""A piano roll in the terminal: notes rise from the keys that play them, brighter when louder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.segment import Segment
from rich.text import Text

from musicjax.infer.stream import Event, NoteOff, NoteOn
from musicjax.notes import pitch_name
from musicjax.terminal.canvas import (
    FAINT,
    INK,
    PAPER,
    Line,
    half_blocks,
    mixed,
    style,
    text_line,
    touch,
)
from musicjax.types import LOWEST_PITCH, NUM_PITCHES

SLICE_S = 0.07  # of time in half a line
_BLACK = frozenset((1, 3, 6, 8, 10))  # degrees of the black keys
_WHITE_LANE, _BLACK_LANE, _C_LANE = 0x12161F, 0x0D1016, 0x1D2535
_IVORY, _IVORY_EDGE, _EBONY = 0xD8D3C6, 0xB9B4A8, 0x1A1D25
_FADED = 0.55  # how much of its colour a note has lost at the top
_KEYBOARD_LINES = 3  # two of keys, one of names


@dataclass
class _Note:
    pitch: int
    velocity: int
    on_s: float
    off_s: float | None = None


class RollView:
    """What is played, as a keyboard and the notes that rise from it."""

    def __init__(self) -> None:
        self.count = 0  # notes so far
        self._notes: list[_Note] = []
        self._sounding: dict[int, _Note] = {}

    def add(self, events: Sequence[Event]) -> None:
        """Take the next events."""
        for event in events:
            if not isinstance(event, NoteOn | NoteOff):
                continue
            ended = self._sounding.pop(event.pitch, None)
            if ended is not None:
                ended.off_s = event.time_s
            if isinstance(event, NoteOn):
                note = _Note(event.pitch, event.velocity, event.time_s)
                self._sounding[event.pitch] = note
                self._notes.append(note)
                self.count += 1

    def told(self) -> Text:
        """The names of the notes that sound, coloured by how loud they began."""
        text = Text()
        for pitch, note in sorted(self._sounding.items()):
            text.append(f" {pitch_name(pitch)}", style(touch(note.velocity), bold=True))
        return text if text.plain else Text(" ·", style(FAINT))

    def lines(self, width: int, height: int, now_s: float) -> list[Line]:
        """The roll and the keyboard in so many lines."""
        columns, left = _columns(width, [note.pitch for note in self._notes[-64:]])
        rows = max(height - _KEYBOARD_LINES, 0)
        colours = self._colours(2 * rows, now_s)[:, columns]
        margin = width - left - len(columns)
        sides = (Segment(" " * left, style(INK)), Segment(" " * margin, style(INK)))
        drawn = [half_blocks(colours[2 * row], colours[2 * row + 1]) for row in range(rows)]
        drawn += self._keyboard(columns)
        names = self._names(columns)
        lines = [[sides[0], *line, sides[1]] for line in drawn]
        lines.append(text_line(Text(" " * left) + names, width))
        return lines[-height:]

    def _colours(self, slices: int, now_s: float) -> np.ndarray:
        """(slices, 88) colours, the latest slice last; forgets notes that have left at the top."""
        grid = np.broadcast_to(_LANES, (slices, NUM_PITCHES)).copy()
        played = np.zeros(grid.shape, bool)
        first_s = now_s - slices * SLICE_S
        self._notes = [n for n in self._notes if n.off_s is None or n.off_s > first_s]
        last = int(now_s / SLICE_S)
        for note in self._notes:
            key = note.pitch - LOWEST_PITCH
            if not 0 <= key < NUM_PITCHES:
                continue
            on = slices - 1 - (last - int(note.on_s / SLICE_S))
            off_s = now_s if note.off_s is None else note.off_s
            off = slices - 1 - (last - int(off_s / SLICE_S))
            off = slices if note.off_s is None else max(off, on + 1)
            on, first = max(on, 0), on
            grid[on:off, key] = touch(note.velocity)
            played[on:off, key] = True
            if first == on and on < slices:
                grid[on, key] = mixed(touch(note.velocity), 0xFFFFFF, 0.45)
        return np.where(played, _faded(grid), grid)

    def _keyboard(self, columns: np.ndarray) -> list[Line]:
        """Two lines of keys; those that sound have the colour of their note."""
        back, front = _BACK.copy(), _FRONT.copy()
        for pitch, note in self._sounding.items():
            key = pitch - LOWEST_PITCH
            if 0 <= key < NUM_PITCHES:
                back[key] = touch(note.velocity)
                if pitch % 12 not in _BLACK:
                    front[key] = touch(note.velocity)
        back, front = back[columns], front[columns]
        return [half_blocks(back, back), half_blocks(front, front)]

    def _names(self, columns: np.ndarray) -> Text:
        """C1, C2 … under their keys, and the names of what sounds where there is room."""
        places: dict[int, tuple[str, int]] = {}
        for pitch, note in sorted(self._sounding.items()):
            places[pitch - LOWEST_PITCH] = (pitch_name(pitch), touch(note.velocity))
        for key in range(NUM_PITCHES):
            if (key + LOWEST_PITCH) % 12 == 0 and key not in places:
                places[key] = (pitch_name(key + LOWEST_PITCH), FAINT)
        first = {int(key): place for place, key in reversed(list(enumerate(columns)))}
        text = Text()
        taken: list[tuple[int, int, str, int]] = []
        wanted = sorted(places.items(), key=lambda item: item[1][1] == FAINT)
        for key, (name, colour) in wanted:
            if key not in first:
                continue
            begin = min(first[key], len(columns) - len(name))
            end = begin + len(name)
            if begin >= 0 and all(end < b or begin > e for b, e, *_ in taken):
                taken.append((begin, end, name, colour))
        for begin, _, name, colour in sorted(taken):
            text.append(" " * (begin - len(text.plain)))
            text.append(name, style(colour, bold=colour != FAINT))
        return text


def _columns(width: int, pitches: Sequence[int]) -> tuple[np.ndarray, int]:
    """The key that each column shows, and how many columns are left free before the first.

    All keys where there is room, twice as wide where there is much; else those around what sounds.
    """
    wide = 2 if width >= 2 * NUM_PITCHES else 1
    shown = min(NUM_PITCHES, width)
    centre = (min(pitches) + max(pitches)) / 2 - LOWEST_PITCH if pitches else NUM_PITCHES / 2
    first = max(0, min(round(centre - shown / 2), NUM_PITCHES - shown))
    columns = np.repeat(np.arange(first, first + shown), wide)
    return columns, (width - len(columns)) // 2


def _faded(grid: np.ndarray) -> np.ndarray:
    """Colours that go over into the paper towards the top, in few enough steps."""
    age = np.round(np.linspace(16, 0, len(grid))) / 16 * _FADED
    parts = [
        np.round((grid >> s & 255) * (1 - age[:, None]) + (PAPER >> s & 255) * age[:, None])
        for s in (16, 8, 0)
    ]
    red, green, blue = (part.astype(int) for part in parts)
    return red << 16 | green << 8 | blue


def _lane(pitch: int) -> int:
    return _BLACK_LANE if pitch % 12 in _BLACK else _C_LANE if pitch % 12 == 0 else _WHITE_LANE


_PITCHES = range(LOWEST_PITCH, LOWEST_PITCH + NUM_PITCHES)
_LANES = np.array([_lane(pitch) for pitch in _PITCHES])
_BACK = np.array([_EBONY if pitch % 12 in _BLACK else _IVORY for pitch in _PITCHES])
_FRONT = np.array([_IVORY_EDGE if pitch % 12 in _BLACK else _IVORY for pitch in _PITCHES])
