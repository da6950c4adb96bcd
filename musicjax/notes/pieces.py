"""Notes of a recording that is too long to be kept: decoded while its activations come in."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from musicjax.notes.notes import Notes
from musicjax.types import LOWEST_PITCH, NUM_PITCHES

# Where a piece ends, in parts of a frame after one: notes end on frames, or on what three float16
# values tell, so that no rounding of seconds moves a note over it.
_BETWEEN = 0.3718281828


@runtime_checkable
class LongDecoder(Protocol):
    """What a system's `decoder` gives: the same notes as its `decode`, and nothing else is kept."""

    def add(self, activations: Mapping[str, np.ndarray]) -> None:
        """Take the next frames, name -> (T, ...)."""

    def done(self) -> Notes:
        """The notes of all frames."""

    @property
    def confidence(self) -> float | None:
        """The mean of `onset_sureness` over all notes; None where it is not known."""


class PieceDecoder:
    """Decodes some minutes at a time, for systems whose notes depend on few frames around them.

    A note is taken from the first piece in which all is known of it, and frames are kept from where
    the first other note begins. So the notes are those of the whole, to a rounding of their times,
    and memory grows only while one note sounds on.

    Args:
      decode: activations of one piece to notes, none of them left out for being short.
      frames_per_s: of the activations.
      before: frames before its onset that a note depends on, and of which too many do no harm.
      after: frames in which an onset may still be unheard, at the end of a piece.
      reach: frames from its onset that a note depends on; None where that is `settle` past its end.
      settle: frames after its end that a note depends on, where `reach` is None.
      min_duration_s: shorter notes are left out.
      piece_s: seconds decoded together, at least.
    """

    def __init__(
        self,
        decode: Callable[[Mapping[str, np.ndarray]], Notes],
        frames_per_s: float,
        *,
        before: int = 1,
        after: int = 1,
        reach: int | None = None,
        settle: int = 0,
        min_duration_s: float = 0.0,
        piece_s: float = 300.0,
    ) -> None:
        self.decode, self.frames_per_s = decode, frames_per_s
        self.before, self.after, self.reach, self.settle = before, after, reach, settle
        self.min_duration_s = min_duration_s
        self.piece = max(round(piece_s * frames_per_s), 1)
        self._waiting: list[dict[str, np.ndarray]] = []
        self._first = 0  # frame at which what waits begins
        self._seen = 0  # frames in which all that ended was taken
        self._found: list[Notes] = []
        self._sure: list[np.ndarray] = []

    def add(self, activations: Mapping[str, np.ndarray]) -> None:
        """Take the next frames, any number."""
        self._waiting.append({name: np.asarray(roll) for name, roll in activations.items()})
        end = self._first + sum(len(_any(part)) for part in self._waiting)
        # As much as is kept of before, so that a note without end is not decoded ever again.
        if end - self._seen >= max(self.piece, self._seen - self._first):
            self._take(end, is_last=False)

    def done(self) -> Notes:
        """The notes of all frames, by onset and then by pitch."""
        if self._waiting:
            end = self._first + sum(len(_any(part)) for part in self._waiting)
            self._take(end, is_last=True)
        notes = Notes.concat(self._found)
        # Those of one frame were counted from several pieces: a billionth of a second is none.
        return notes[np.lexsort((notes.pitch, np.rint(notes.onset_s * 1e9)))]

    @property
    def confidence(self) -> float | None:
        """Mean over the notes of how sure the network was of their onsets; None without any."""
        sure = np.concatenate([np.zeros(0), *self._sure])
        return float(sure.mean()) if len(sure) else None

    def _take(self, end: int, *, is_last: bool) -> None:
        waiting = self._waiting
        rolls = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
        notes = self.decode(rolls)
        onset = self._first + notes.onset_s * self.frames_per_s
        offset = self._first + notes.offset_s * self.frames_per_s
        known = offset + self.settle if self.reach is None else onset + self.reach
        there = onset > self._first + self.before - 1 + _BETWEEN if self._first else onset >= 0
        new = there & (known > self._seen - _BETWEEN if self._seen else there)
        whole = known < end - _BETWEEN
        taken = notes[new & (whole | is_last)]
        sure = onset_sureness(rolls, taken, self.frames_per_s)
        taken = taken.shift(self._first / self.frames_per_s)
        long = taken.offset_s - taken.onset_s > self.min_duration_s - 1e-9
        self._found.append(taken[long])
        if sure is not None:
            self._sure.append(sure[long])
        first = min(end - self.after, *onset[new & ~whole].astype(int).tolist(), end)
        first = max(first - self.before, self._first)
        part = first - self._first
        self._waiting = [{name: roll[part:].copy() for name, roll in rolls.items()}]
        self._first, self._seen = first, end


def onset_sureness(
    activations: Mapping[str, np.ndarray], notes: Notes, frames_per_s: float
) -> np.ndarray | None:
    """How sure the network was of each onset, 0 to 1: the most within a frame of it.

    None where the activations tell no probability of onsets of the piano's keys.
    """
    onset = activations.get("onset")
    if onset is None or onset.ndim != 2 or onset.shape[1] != NUM_PITCHES:
        return None
    frame = np.rint(notes.onset_s * frames_per_s).astype(int)
    key = np.clip(notes.pitch.astype(int) - LOWEST_PITCH, 0, NUM_PITCHES - 1)
    near = [onset[np.clip(frame + d, 0, len(onset) - 1), key] for d in (-1, 0, 1)]
    return np.max(near, axis=0).astype(np.float64)


def _any(activations: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(iter(activations.values()))
