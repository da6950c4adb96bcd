"""Notes as parallel arrays: the symbols that every transcriber writes and every trainer reads."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float64, Int, Int16, UInt8

from musicjax.errors import DataError
from musicjax.notes.bends import Bends

SUSTAIN, SOSTENUTO, SOFT = 64, 66, 67  # MIDI controller numbers of the three piano pedals
PEDALS = (SUSTAIN, SOSTENUTO, SOFT)
PEDAL_DOWN = 64  # controller values from here on mean pressed
DEFAULT_VELOCITY = 80
NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def pitch_name(pitch: int) -> str:
    """Scientific name of a MIDI pitch, sharps only: 60 is C4, 21 is A0."""
    octave, degree = divmod(int(pitch), 12)
    return f"{NOTE_NAMES[degree]}{octave - 1}"


# One value for every note, or one each.
Values = np.ndarray | np.generic | Sequence[Any] | float | bool


class Note(NamedTuple):
    """One note. Times in seconds, MIDI pitch and velocity 0..127, General MIDI program 0..127."""

    onset_s: float
    offset_s: float
    pitch: int
    velocity: int = DEFAULT_VELOCITY
    program: int = 0
    is_drum: bool = False


def _times(values: Values, name: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be a list of seconds; got {values!r:.80}.") from None
    if array.ndim != 1:
        raise DataError(f"{name} must be a list of seconds, one a note; got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{name} must be finite seconds; got NaN or infinity.")
    array.setflags(write=False)
    return array


def _whole(values: Values, name: str, dtype: Any, length: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (length,):
        raise DataError(
            f"{name} must have one entry for each of {length} onsets; got {array.shape}."
        )
    if array.dtype.kind not in "biuf" and length:
        raise DataError(f"{name} must be whole numbers from 0 to 127; got {values!r:.80}.")
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    if length and not ((rounded == array).all() and rounded.min() >= 0 and rounded.max() <= 127):
        raise DataError(
            f"{name} must be whole numbers from 0 to 127; got {array.min()} to {array.max()}."
        )
    array = rounded.astype(dtype)  # always a copy, so that freezing it does not touch the caller's
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Pedal:
    """Pedal movements as control changes, in order of time.

    time_s: seconds. number: MIDI controller 64 (sustain), 66 (sostenuto) or 67 (soft). value:
    0..127, pressed from 64 on. program: the instrument whose pedal it is, as in `Notes.program`.
    Events at one time keep the order they are given in, which tells a re-pedalling from a press.
    """

    time_s: Float64[np.ndarray, " events"]
    number: UInt8[np.ndarray, " events"]
    value: UInt8[np.ndarray, " events"]
    program: UInt8[np.ndarray, " events"]

    def __post_init__(self) -> None:
        time_s = _times(self.time_s, "Pedal time_s")
        count = len(time_s)
        columns = {"time_s": time_s}
        for name in ("number", "value", "program"):
            columns[name] = _whole(getattr(self, name), f"Pedal {name}", np.uint8, count)
        if not np.isin(columns["number"], PEDALS).all():
            raise DataError(f"Pedal number must be one of {PEDALS}; got {set(columns['number'])}.")
        order = np.lexsort((columns["number"], columns["program"], time_s))  # lexsort is stable
        for name, column in columns.items():
            column = column[order]
            column.setflags(write=False)
            object.__setattr__(self, name, column)

    @classmethod
    def from_arrays(
        cls,
        time_s: Values,
        value: Values,
        number: Values = SUSTAIN,
        program: Values = 0,
    ) -> "Pedal":
        """Make pedal events; number and program may be one value for all."""
        count = len(np.atleast_1d(time_s))
        number, program = (np.broadcast_to(column, count) for column in (number, program))
        return cls(*(np.atleast_1d(column) for column in (time_s, number, value, program)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.time_s)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pedal):
            return NotImplemented
        return all(
            np.array_equal(a, b) for a, b in zip(self.columns(), other.columns(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        presses = int(np.sum((self.number == SUSTAIN) & (self.value >= PEDAL_DOWN)))
        return f"Pedal({len(self)} events, {presses} of them sustain down)"

    def __getitem__(self, index: Any) -> "Pedal":
        """Select events by slice, mask or index array."""
        return Pedal(*(column[index] for column in self.columns()))

    def columns(self) -> tuple[np.ndarray, ...]:
        """time_s, number, value and program, in the order of the constructor."""
        return self.time_s, self.number, self.value, self.program

    def _timed(self, time_s: np.ndarray) -> "Pedal":
        return replace(self, time_s=time_s)

    def at(self, time_s: float) -> "Pedal":
        """The pedals as they stand just before `time_s`: one event a pedal that is off zero."""
        latest: dict[tuple[int, int], int] = {}
        for index in np.flatnonzero(self.time_s < time_s):
            latest[int(self.program[index]), int(self.number[index])] = int(index)
        held = np.array([i for i in latest.values() if self.value[i]], dtype=np.int64)
        return self[held]._timed(np.full(len(held), time_s))


@dataclass(frozen=True, eq=False)
class Notes:
    """A piece, or a part of one: notes in parallel read-only arrays, and pedal movements.

    onset_s, offset_s: seconds, offset >= onset; offsets are the keys going up, and `sustained()`
    gives what sounds. pitch: MIDI number, 60 is middle C; for drums the General MIDI drum key.
    velocity: 0..127. program: General MIDI program 0..127 (0 grand piano). is_drum: drum kit.
    pedal: None when there are no pedal events. bends: how the pitch of each note moves, None when
    no note's does. The order of notes is the caller's; `sorted()` gives the order in which files
    are read.

    Errors: DataError when lengths differ, a time is not finite, an offset precedes its onset, or a
    number lies outside MIDI's range.
    """

    onset_s: Float64[np.ndarray, " notes"]
    offset_s: Float64[np.ndarray, " notes"]
    pitch: Int16[np.ndarray, " notes"]
    velocity: UInt8[np.ndarray, " notes"]
    program: UInt8[np.ndarray, " notes"]
    is_drum: Bool[np.ndarray, " notes"]
    pedal: Pedal | None = None
    bends: Bends | None = None

    def __post_init__(self) -> None:
        onset_s = _times(self.onset_s, "onset_s")
        offset_s = _times(self.offset_s, "offset_s")
        count = len(onset_s)
        if len(offset_s) != count:
            raise DataError(
                f"There are {count} onsets but {len(offset_s)} offsets; they go in pairs."
            )
        if (offset_s < onset_s).any():
            at = int(np.argmax(offset_s < onset_s))
            raise DataError(
                f"Note {at} ends at {offset_s[at]:.3f} s, before its onset at {onset_s[at]:.3f} s."
            )
        is_drum = _whole(self.is_drum, "is_drum", bool, count)
        for name, column in (("onset_s", onset_s), ("offset_s", offset_s), ("is_drum", is_drum)):
            object.__setattr__(self, name, column)
        for name, dtype in (("pitch", np.int16), ("velocity", np.uint8), ("program", np.uint8)):
            object.__setattr__(self, name, _whole(getattr(self, name), name, dtype, count))
        if self.pedal is not None and not len(self.pedal):
            object.__setattr__(self, "pedal", None)
        if self.bends is not None and len(self.bends) != count:
            raise DataError(
                f"There are bends of {len(self.bends)} notes for {count} notes; give one count of "
                "points for each note, 0 where it keeps its pitch."
            )
        if self.bends is not None and not len(self.bends.time_s):
            object.__setattr__(self, "bends", None)

    @classmethod
    def from_arrays(
        cls,
        onset_s: Values,
        offset_s: Values,
        pitch: Values,
        velocity: Values = DEFAULT_VELOCITY,
        program: Values = 0,
        is_drum: Values = False,
        pedal: Pedal | None = None,
        bends: Bends | None = None,
    ) -> "Notes":
        """Make notes from lists or arrays; velocity, program, is_drum may be one value for all."""
        count = len(np.atleast_1d(onset_s))
        shared = (
            np.broadcast_to(column, count) if np.ndim(column) == 0 else column
            for column in (velocity, program, is_drum)
        )
        columns = (np.atleast_1d(column) for column in (onset_s, offset_s, pitch, *shared))
        return cls(*columns, pedal=pedal, bends=bends)  # type: ignore[arg-type]

    @classmethod
    def empty(cls) -> "Notes":
        """No notes at all."""
        return cls.from_arrays([], [], [])

    @classmethod
    def from_notes(cls, notes: Iterable[Note], pedal: Pedal | None = None) -> "Notes":
        """Make notes from single notes."""
        rows = list(notes)
        columns: dict[str, Any] = {
            name: [getattr(row, name) for row in rows] for name in Note._fields
        }
        return cls.from_arrays(**columns, pedal=pedal)

    @classmethod
    def concat(cls, parts: Iterable["Notes"]) -> "Notes":
        """All notes, bends and pedal events of several parts, in the order of the parts."""
        parts = list(parts)
        if not parts:
            return cls.empty()
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in Note._fields
        }
        pedals = [part.pedal.columns() for part in parts if part.pedal is not None]
        joined = [np.concatenate(group) for group in zip(*pedals, strict=True)]
        bends = None
        if any(part.bends is not None for part in parts):
            bends = Bends.concat([part.bends or Bends.none(len(part)) for part in parts])
        return cls(**columns, pedal=Pedal(*joined) if joined else None, bends=bends)

    def columns(self) -> tuple[np.ndarray, ...]:
        """The six arrays, in the order of the constructor."""
        return (self.onset_s, self.offset_s, self.pitch, self.velocity, self.program, self.is_drum)

    def __len__(self) -> int:
        return len(self.onset_s)

    def __iter__(self) -> Iterator[Note]:
        return map(Note._make, zip(*(column.tolist() for column in self.columns()), strict=True))

    @overload
    def __getitem__(self, index: int) -> Note: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray | list) -> "Notes": ...
    def __getitem__(self, index: Any) -> "Note | Notes":
        """A number gives one Note; a slice, mask or index array gives Notes with the same pedal.

        The bends of the chosen notes come with them; a single Note has none.
        """
        if isinstance(index, int | np.integer):
            return Note(*(column[index].item() for column in self.columns()))
        bends = None if self.bends is None else self.bends[index]
        columns = (column[index] for column in self.columns())
        return Notes(*columns, pedal=self.pedal, bends=bends)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Notes):
            return NotImplemented
        pairs = zip(self.columns(), other.columns(), strict=True)
        same = all(np.array_equal(a, b) for a, b in pairs)
        return same and self.pedal == other.pedal and self.bends == other.bends

    __hash__ = None  # type: ignore[assignment]

    @property
    def duration_s(self) -> float:
        """When the last note ends, in seconds; 0 without notes."""
        return float(self.offset_s.max()) if len(self) else 0.0

    def sorted(self) -> "Notes":
        """Ordered by onset, then pitch, pitched before drums, program, offset, velocity."""
        keys = (self.velocity, self.offset_s, self.program, self.is_drum, self.pitch, self.onset_s)
        return self[np.lexsort(keys)]

    def slice(self, start_s: float, end_s: float, *, clip: bool = False) -> "Notes":
        """Notes that sound somewhere in [start_s, end_s), at their own times, and the pedal there.

        With `clip` the notes are cut to the window, so a note that is held into it begins at its
        start. A pedal that is down when the window starts gets an event at start_s.
        """
        starts = (self.onset_s >= start_s) | (self.offset_s > start_s)
        part = self[starts & (self.onset_s < end_s)]
        pedal = None
        if self.pedal is not None:
            inside = self.pedal[(self.pedal.time_s >= start_s) & (self.pedal.time_s < end_s)]
            held = self.pedal.at(start_s)
            columns = zip(held.columns(), inside.columns(), strict=True)
            pedal = Pedal(*(np.concatenate(pair) for pair in columns))
        part = replace(part, pedal=pedal)
        if clip:
            part = replace(
                part,
                onset_s=np.maximum(part.onset_s, start_s),
                offset_s=np.minimum(part.offset_s, end_s),
            )
        return part

    def _mapped(self, scale: float, shift_s: float) -> "Notes":
        pedal = self.pedal and self.pedal._timed(self.pedal.time_s * scale + shift_s)
        onset_s, offset_s = (times * scale + shift_s for times in (self.onset_s, self.offset_s))
        bends = self.bends and self.bends.timed(scale, shift_s)
        return replace(self, onset_s=onset_s, offset_s=offset_s, pedal=pedal, bends=bends)

    def shift(self, seconds: float) -> "Notes":
        """Everything later by `seconds` (earlier when negative)."""
        return self._mapped(1.0, seconds)

    def stretch(self, factor: float) -> "Notes":
        """Every time multiplied by `factor`: 2.0 plays at half the speed."""
        if not factor > 0:
            raise DataError(f"The stretch factor must be above 0; got {factor}.")
        return self._mapped(factor, 0.0)

    def transpose(self, semitones: int) -> "Notes":
        """Higher by `semitones`; drums stay, and notes that leave MIDI's 0..127 are dropped."""
        pitch = np.where(self.is_drum, self.pitch, self.pitch.astype(int) + semitones)
        inside = (pitch >= 0) & (pitch <= 127)
        return replace(self[inside], pitch=pitch[inside])

    def sustained(self, threshold: int = PEDAL_DOWN) -> "Notes":
        """Notes with the offsets that are heard: held by the sustain pedal past the key going up.

        A note whose key goes up while the pedal of its program is down (CC64 >= `threshold`) lasts
        until the pedal goes up, or the same pitch is played again, or the last event of the piece.
        With the pedal down, playing a pitch again ends it even if its key is still down; of two
        notes that start at once on one pitch the later in order then stays. At one time pedals
        move first, then notes start, then notes end. Drums have no pedal. The result has no pedal.
        """
        if self.pedal is None:
            return self
        offset_s = self.offset_s.copy()
        keep = np.ones(len(self), dtype=bool)
        moves = self.pedal[self.pedal.number == SUSTAIN]
        for program in np.unique(moves.program):
            mine = np.flatnonzero((self.program == program) & ~self.is_drum)
            part = moves[moves.program == program]
            ends, stays = sustained_offsets(
                self.onset_s[mine],
                self.offset_s[mine],
                self.pitch[mine],
                part.time_s,
                part.value >= threshold,
            )
            offset_s[mine], keep[mine] = ends, stays
        return replace(self, offset_s=offset_s, pedal=None)[keep]

    def __repr__(self) -> str:
        return f"Notes({self.summary()})"

    def summary(self) -> str:
        """One line: how many notes, when, between which pitches, and how many pedal events."""
        if not len(self):
            return "0 notes"
        parts = [f"{len(self)} notes", f"{self.onset_s.min():.3f}-{self.duration_s:.3f} s"]
        pitched = self.pitch[~self.is_drum]
        if len(pitched):
            parts.append(f"{pitch_name(int(pitched.min()))}-{pitch_name(int(pitched.max()))}")
            parts.append(f"velocity {self.velocity.min()}-{self.velocity.max()}")
        programs = len(np.unique(self.program[~self.is_drum]))
        if programs > 1:
            parts.append(f"{programs} programs")
        drums = int(self.is_drum.sum())
        if drums:
            parts.append("all drums" if drums == len(self) else f"{drums} of them drums")
        if self.pedal is not None:
            parts.append(f"{len(self.pedal)} pedal events")
        if self.bends is not None:
            parts.append(f"{int((self.bends.count > 0).sum())} notes bent")
        return ", ".join(parts)

    def __rich__(self) -> object:
        """A table of the first notes, for rich's console."""
        from musicjax.notes.show import rich_table

        return rich_table(self)

    def _repr_html_(self) -> str:
        """A small drawn piano roll under the summary, for notebooks."""
        from musicjax.notes.show import html

        return html(self)


def sustained_offsets(
    onset_s: Float64[np.ndarray, " notes"],
    offset_s: Float64[np.ndarray, " notes"],
    pitch: Int[np.ndarray, " notes"],
    move_s: Float64[np.ndarray, " moves"],
    down: Bool[np.ndarray, " moves"],
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets under one sustain pedal, and which notes stay (bool); see `Notes.sustained`.

    move_s are the ascending times at which the pedal moves, down whether it is then pressed.
    """
    if not len(onset_s):
        return offset_s, np.ones(0, dtype=bool)
    last_s = max(float(offset_s.max()), float(move_s[-1]))
    state = np.concatenate([[False], down])  # state[i]: after the first i moves
    ups_s = np.append(move_s[~down], np.inf)

    held = state[np.searchsorted(move_s, offset_s, side="right")]
    release_s = np.minimum(ups_s[np.searchsorted(ups_s[:-1], offset_s, side="right")], last_s)
    end_s = np.where(held, release_s, offset_s)

    # The next start of the same pitch at which the pedal is down ends the note.
    order = np.lexsort((onset_s, pitch))
    down_at_onset = state[np.searchsorted(move_s, onset_s[order], side="right")]
    candidates = np.append(np.flatnonzero(down_at_onset), len(order))
    later = candidates[np.searchsorted(candidates[:-1], np.arange(len(order)), side="right")]
    exists = later < len(order)
    later = np.where(exists, later, 0)
    exists &= pitch[order][later] == pitch[order]
    replay_s = np.empty(len(order))
    replay_s[order] = np.where(exists, onset_s[order][later], np.inf)
    return np.minimum(end_s, replay_s), replay_s > onset_s
