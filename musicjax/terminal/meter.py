"""A pitch meter in the terminal: the note in large letters, a needle of cents, the way it went."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from rich.segment import Segment
from rich.text import Text

from musicjax.infer.stream import Event, PitchFrame
from musicjax.notes import pitch_name
from musicjax.terminal.canvas import (
    BAD,
    FAINT,
    FAIR,
    GOOD,
    INK,
    Line,
    bar,
    braille,
    style,
    text_line,
)

_KEPT_S = 30.0
_DOT_S = 0.02  # of time in half a character
_NAME_WIDTH, _LARGE_LINES = 5, 7  # of the names beside the trace; of what stands above it
_LEAST_SEMITONES, _MOST_SEMITONES = 12, 36  # that the trace spans
_IN_TUNE, _NEAR = 6.0, 18.0  # cents
_FIRST_RANGE = (54.0, 66.0)  # of the trace, before a voice was heard
_LETTERS = {  # 4 x 5 squares
    "A": "0110 1001 1111 1001 1001",
    "B": "1110 1001 1110 1001 1110",
    "C": "0111 1000 1000 1000 0111",
    "D": "1110 1001 1001 1001 1110",
    "E": "1111 1000 1110 1000 1111",
    "F": "1111 1000 1110 1000 1000",
    "G": "0111 1000 1011 1001 0111",
    "#": "0101 1111 0101 1111 0101",
    "-": "0000 0000 1110 0000 0000",
    "0": "0110 1001 1001 1001 0110",
    "1": "0010 0110 0010 0010 0111",
    "2": "1110 0001 0110 1000 1111",
    "3": "1110 0001 0110 0001 1110",
    "4": "1001 1001 1111 0001 0001",
    "5": "1111 1000 1110 0001 1110",
    "6": "0110 1000 1110 1001 0110",
    "7": "1111 0001 0010 0100 0100",
    "8": "0110 1001 0110 1001 0110",
    "9": "0110 1001 0111 0001 0110",
}


class PitchView:
    """The pitch of one voice now, and how it came there."""

    def __init__(self) -> None:
        self.count = 0  # frames with a pitch so far
        self._times: deque[float] = deque()
        self._midi: deque[float] = deque()
        self._now: PitchFrame | None = None
        self._range = _FIRST_RANGE  # semitones that the trace shows

    def add(self, events: Sequence[Event]) -> None:
        """Take the next events."""
        for event in events:
            if not isinstance(event, PitchFrame):
                continue
            self._now = event
            self._times.append(event.time_s)
            self._midi.append(_midi(event.f0_hz))
            self.count += event.f0_hz > 0
            while self._times[0] < event.time_s - _KEPT_S:
                self._times.popleft()
                self._midi.popleft()

    def told(self) -> Text:
        """The note that is sung and how far it is off."""
        midi = _midi(self._now.f0_hz) if self._now is not None else math.nan
        if math.isnan(midi):
            return Text(" ·", style(FAINT))
        cents = _cents(midi)
        return Text(f" {pitch_name(round(midi))} {cents:+.0f}", style(_tuned(cents), bold=True))

    def lines(self, width: int, height: int, now_s: float) -> list[Line]:
        """Note, needle and trace in so many lines."""
        large = self._large(width) if height >= _LARGE_LINES + 4 else []
        return [*large, *self._trace(width, height - len(large), now_s)][:height]

    def _large(self, width: int) -> list[Line]:
        """The note's name five lines high, with its frequency, confidence and needle beside it."""
        now = self._now
        midi = _midi(now.f0_hz) if now is not None else math.nan
        heard = not math.isnan(midi)
        cents = _cents(midi) if heard else 0.0
        colour = _tuned(cents) if heard else FAINT
        name = pitch_name(round(midi)) if heard else "-"
        rows = ["  ".join(_wide(_LETTERS[c].split()[row]) for c in name) for row in range(5)]
        beside = max(width - 36, 10)
        sure = now.confidence if now is not None else 0.0
        facts = [
            Text(f"{now.f0_hz:9.2f} Hz {cents:+6.0f} cents" if heard and now else "        — Hz"),
            Text.assemble(
                ("     sure ", style(FAINT)),
                (bar(sure, 12), style(GOOD if sure > 0.8 else FAIR, 0x12161F)),
                (f" {sure:.2f}", style(INK)),
            ),
            Text(""),
            _needle(cents if heard else None, min(beside, 81)),
            _scale(min(beside, 81)),
        ]
        lines = [text_line(Text(""), width)]
        for row, fact in zip(rows, facts, strict=True):
            shown = Text("   ") + Text(row.ljust(30), style(colour)) + Text("  ") + fact
            lines.append(text_line(shown, width))
        return [*lines, text_line(Text(""), width)]

    def _trace(self, width: int, rows: int, now_s: float) -> list[Line]:
        """The last seconds: time to the right, semitones upwards, coloured by how well in tune."""
        columns = max(width - _NAME_WIDTH - 1, 1)
        if rows < 1:
            return []
        seen_s = 2 * columns * _DOT_S
        times, midi = np.array(self._times), np.array(self._midi)
        recent = (times > now_s - seen_s) & ~np.isnan(midi) if len(times) else np.zeros(0, bool)
        times, midi = times[recent], midi[recent]
        if len(midi):
            self._range = _range(midi, float(np.median(midi[-50:])))
        low, high = self._range
        per_dot = (high - low) / (4 * rows)
        x = np.floor((times - (now_s - seen_s)) / _DOT_S).astype(int)
        y = np.floor((high - midi) / per_dot).astype(int)
        inside = (y >= 0) & (y < 4 * rows) & (x >= 0) & (x < 2 * columns)
        x, y = x[inside], y[inside]
        dots = np.zeros((4 * rows, 2 * columns), bool)
        dots[y, x] = True
        colours = np.full((rows, columns), INK)
        for row, column, pitch in zip(y // 4, x // 2, midi[inside], strict=True):
            colours[row, column] = _tuned(_cents(float(pitch)))
        notes = sorted(_natural(low, high), key=lambda note: note % 12 == 0)  # a C goes over others
        grid = {int((high - note) / per_dot) // 4: note for note in notes}
        return [
            _trace_line(row, text, colours[row], grid.get(row))
            for row, text in enumerate(braille(dots))
        ]


def _range(midi: np.ndarray, now: float) -> tuple[float, float]:
    """Lowest and highest semitone to show: what was sung, or around what is sung, if that is much.

    Whole semitones, so that the picture stands still while the voice moves little.
    """
    low, high = np.percentile(midi, [2, 98])
    low, high = math.floor(low) - 1.5, math.ceil(high) + 1.5
    if high - low > _MOST_SEMITONES:
        low, high = (round(now) + part * _MOST_SEMITONES / 2 for part in (-1, 1))
    short = max(_LEAST_SEMITONES - (high - low), 0)
    return low - short // 2, high + short - short // 2


def _trace_line(row: int, text: str, colours: np.ndarray, note: int | None) -> Line:
    name = "" if note is None else pitch_name(note)
    strong = note is not None and note % 12 == 0
    rule = " " if note is None else "┄"
    line = [Segment(f"{name:>{_NAME_WIDTH - 1}}  ", style(INK if strong else FAINT))]
    empty = style(0x2B3446 if strong else 0x1D2430)
    for cell, colour in zip(text, colours.tolist(), strict=True):
        free = cell == "\u2800"
        line.append(Segment(rule if free else cell, empty if free else style(colour)))
    return list(Segment.simplify(line))


def _natural(low: float, high: float) -> list[int]:
    """MIDI numbers of the white keys in a range."""
    notes = range(math.ceil(low), math.floor(high) + 1)
    return [note for note in notes if note % 12 in (0, 2, 4, 5, 7, 9, 11)]


def _needle(cents: float | None, width: int) -> Text:
    """Where between -50 and 50 cents the pitch is."""
    middle = width // 2
    cells = ["─"] * width
    for mark in (-50, -25, 0, 25, 50):
        cells[_at(mark, width)] = "┼" if mark == 0 else "┬"
    text = Text("".join(cells), style(FAINT))
    tuned = round(_IN_TUNE / 50 * (width // 2))
    text.stylize(style(GOOD), middle - tuned, middle + tuned + 1)
    if cents is not None:
        place = _at(cents, width)
        text = text[:place] + Text("█", style(_tuned(cents), bold=True)) + text[place + 1 :]
    return text


def _scale(width: int) -> Text:
    cells = [" "] * width
    for mark in (-50, -25, 0, 25, 50):
        name = f"{mark:+d}" if mark else "0"
        begin = max(0, min(_at(mark, width) - len(name) // 2, width - len(name)))
        cells[begin : begin + len(name)] = name
    return Text("".join(cells[:width]), style(FAINT))


def _at(cents: float, width: int) -> int:
    return max(0, min(width - 1, round((cents + 50) / 100 * (width - 1))))


def _wide(squares: str) -> str:
    return "".join("██" if square == "1" else "  " for square in squares)


def _midi(f0_hz: float) -> float:
    return 69 + 12 * math.log2(f0_hz / 440) if f0_hz > 0 else math.nan


def _cents(midi: float) -> float:
    return 100 * (midi - round(midi))


def _tuned(cents: float) -> int:
    return GOOD if abs(cents) <= _IN_TUNE else FAIR if abs(cents) <= _NEAR else BAD
