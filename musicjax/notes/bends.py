"""How the pitch of each note moves while it sounds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from musicjax.errors import DataError


@dataclass(frozen=True, eq=False)
class Bends:
    """Pitch contours of the notes of a `Notes`, in its order, as steps.

    count: points of each note (0: the note keeps its pitch). time_s: when each point begins, the
    points of a note together and ascending. semitones: how far above its pitch the note is from
    that point to the next, or to its end; before its first point it is at its pitch.

    Errors: DataError when the lengths do not fit, or a number is not finite.
    """

    count: Int64[np.ndarray, " notes"]
    time_s: Float64[np.ndarray, " points"]
    semitones: Float64[np.ndarray, " points"]

    def __post_init__(self) -> None:
        count = np.array(self.count, np.int64).reshape(-1)
        time_s, semitones = (
            np.array(column, np.float64).reshape(-1) for column in (self.time_s, self.semitones)
        )
        if (count < 0).any() or count.sum() != len(time_s) or len(time_s) != len(semitones):
            raise DataError(
                f"Bends have {len(time_s)} times and {len(semitones)} values for {count.sum()} "
                "points of their notes; give one of each for every point."
            )
        if not (np.isfinite(time_s).all() and np.isfinite(semitones).all()):
            raise DataError("Bends must be finite seconds and semitones; got NaN or infinity.")
        columns = {"count": count, "time_s": time_s, "semitones": semitones}
        for name, column in columns.items():
            column.setflags(write=False)
            object.__setattr__(self, name, column)

    @classmethod
    def from_points(cls, points: Sequence[Iterable[Sequence[float]]]) -> "Bends":
        """Make bends from a list of (time_s, semitones) for each note."""
        rows = [list(own) for own in points]
        flat = np.array([pair for own in rows for pair in own], np.float64).reshape(-1, 2)
        return cls(np.array([len(own) for own in rows], np.int64), flat[:, 0], flat[:, 1])

    @classmethod
    def none(cls, notes: int) -> "Bends":
        """No bend in any of so many notes."""
        return cls(np.zeros(notes, np.int64), np.zeros(0), np.zeros(0))

    @classmethod
    def concat(cls, parts: Sequence["Bends"]) -> "Bends":
        """The bends of notes put end to end."""
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(*(np.concatenate(group) for group in columns))

    def columns(self) -> tuple[np.ndarray, ...]:
        """count, time_s and semitones, in the order of the constructor."""
        return self.count, self.time_s, self.semitones

    def __len__(self) -> int:
        return len(self.count)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bends):
            return NotImplemented
        pairs = zip(self.columns(), other.columns(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Bends({int((self.count > 0).sum())} of {len(self)} notes, {len(self.time_s)} points)"
        )

    @property
    def first(self) -> Int64[np.ndarray, " notes"]:
        """Index of each note's first point."""
        return np.cumsum(self.count) - self.count

    def of(self, note: int) -> tuple[Float64[np.ndarray, " own"], Float64[np.ndarray, " own"]]:
        """Times and semitones of one note's points."""
        start = int(self.count[:note].sum())
        own = slice(start, start + int(self.count[note]))
        return self.time_s[own], self.semitones[own]

    def __getitem__(self, index: Any) -> "Bends":
        """The bends of chosen notes, by slice, mask or index array."""
        chosen = np.arange(len(self))[index]
        count = self.count[chosen]
        skipped = np.repeat(self.first[chosen] - np.cumsum(count) + count, count)
        points = skipped + np.arange(count.sum())
        return Bends(count, self.time_s[points], self.semitones[points])

    def timed(self, scale: float, shift_s: float) -> "Bends":
        """The same at times multiplied by `scale` and moved by `shift_s` seconds."""
        return Bends(self.count, self.time_s * scale + shift_s, self.semitones)
