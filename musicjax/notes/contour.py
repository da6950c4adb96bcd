"""The pitch of one voice over time, and the notes that it sings.

A contour is what a pitch tracker writes, as `Notes` are what a transcriber writes: a time, a
frequency and a confidence for each frame, 0 Hz where there is no pitch.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from musicjax.errors import DataError
from musicjax.files import atomic_write
from musicjax.notes.bends import Bends
from musicjax.notes.notes import DEFAULT_VELOCITY, Notes, pitch_name

CSV_COLUMNS = ("time_s", "f0_hz", "confidence")
A4_HZ = 440.0

# Notes of a contour: a pitch must leave its note by so much, for so long, to be another note.
LEAVES_SEMITONES, LEAVES_S = 0.65, 0.05
SHORTEST_NOTE_S = 0.06
SMOOTH_S = 0.11  # about half a swing of vibrato, which a note's pitch should not follow


@dataclass(frozen=True, eq=False)
class Contour:
    """Pitch by frame.

    time_s      seconds, ascending, evenly spaced
    f0_hz       fundamental frequency, 0 where there is none
    confidence  0 to 1, how sure the tracker is of that pitch, or of the best one where f0 is 0
    level_db    loudness of the frame in dB of full scale; empty where it is not known
    """

    time_s: Float64[np.ndarray, " T"]
    f0_hz: Float64[np.ndarray, " T"]
    confidence: Float64[np.ndarray, " T"]
    level_db: np.ndarray

    @classmethod
    def from_arrays(
        cls, time_s: Any, f0_hz: Any, confidence: Any = 1.0, level_db: Any = ()
    ) -> "Contour":
        """Make a contour; confidence may be one value for all.

        Raises DataError for columns that do not fit together, times that do not ascend, negative
        or infinite frequencies.
        """
        time, f0 = (np.array(column, np.float64).reshape(-1) for column in (time_s, f0_hz))
        sure = np.broadcast_to(np.asarray(confidence, np.float64), time.shape).copy()
        level = np.array(level_db, np.float64).reshape(-1)
        if len(f0) != len(time) or len(level) not in (0, len(time)):
            raise DataError(
                f"a contour needs one f0_hz for each of {len(time)} times; got {len(f0)}."
            )
        if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
            raise DataError("time_s of a contour must be finite and ascend.")
        if not np.isfinite(f0).all() or (f0 < 0).any():
            raise DataError("f0_hz must be finite and not negative; 0 says that there is no pitch.")
        for column in (time, f0, sure, level):
            column.setflags(write=False)
        return cls(time, f0, sure, level)

    def __len__(self) -> int:
        return len(self.time_s)

    def __repr__(self) -> str:
        return f"Contour({self.summary()})"

    @property
    def voiced(self) -> np.ndarray:
        """(T,) True where there is a pitch."""
        return self.f0_hz > 0

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next; 0.01 where there is only one."""
        return float(np.median(np.diff(self.time_s))) if len(self) > 1 else 0.01

    @property
    def midi(self) -> np.ndarray:
        """(T,) pitch as fractional MIDI numbers at A4 = 440 Hz, NaN where there is none."""
        with np.errstate(divide="ignore"):
            midi = 69 + 12 * np.log2(self.f0_hz / A4_HZ)
        return np.where(self.voiced, midi, np.nan)

    @property
    def note_names(self) -> list[str]:
        """(T,) nearest note and the cents away from it, as "A4 +12"; "" where there is none."""
        nearest = np.rint(np.where(self.voiced, self.midi, 0))
        cents = np.rint(100 * (self.midi - nearest))
        return [
            f"{pitch_name(int(n))} {int(c):+d}" if v else ""
            for n, c, v in zip(nearest, np.nan_to_num(cents), self.voiced, strict=True)
        ]

    def tuning_cents(self) -> float:
        """How far the voice is tuned from A4 = 440 Hz: -50 to 50 cents, 0 where nothing sounds.

        The mean, on the circle of a semitone, of every voiced frame by its confidence; frames that
        glide count less, because they lie anywhere.
        """
        midi, voiced = self.midi, self.voiced
        if not voiced.any():
            return 0.0
        moving = np.abs(np.gradient(midi)) if len(self) > 1 else np.zeros(1)
        weight = self.confidence * np.exp(-((np.nan_to_num(moving, nan=1.0) / 0.05) ** 2))
        weight = np.where(voiced, np.maximum(weight, 1e-6), 0.0)
        mean = np.sum(weight * np.exp(2j * np.pi * np.nan_to_num(midi)))
        return float(100 * np.angle(mean) / (2 * np.pi))

    def tuning_hz(self) -> float:
        """The frequency of A4 that fits the voice best."""
        return float(A4_HZ * 2 ** (self.tuning_cents() / 1200))

    def slice(self, start_s: float, end_s: float) -> "Contour":
        """The frames from `start_s` up to `end_s`, at their own times."""
        part = (self.time_s >= start_s) & (self.time_s < end_s)
        level = self.level_db[part] if len(self.level_db) else self.level_db
        return Contour(self.time_s[part], self.f0_hz[part], self.confidence[part], level)

    def summary(self) -> str:
        """One line for a person: length, share of voiced frames, range, tuning."""
        seconds = len(self) * self.hop_s
        if not self.voiced.any():
            return f"{seconds:.1f} s, no pitch found"
        low, high = (int(np.rint(f(self.midi))) for f in (np.nanmin, np.nanmax))
        return (
            f"{seconds:.1f} s, {100 * self.voiced.mean():.0f} % voiced, {pitch_name(low)} to "
            f"{pitch_name(high)}, A4 = {self.tuning_hz():.1f} Hz"
        )

    # Notes ------------------------------------------------------------------------------------

    def spans(self) -> list[tuple[int, int, int]]:
        """The notes that are sung, as (first frame, last frame + 1, MIDI pitch).

        Pitch is taken from the voice's own tuning and smoothed over half a swing of vibrato; a
        note ends where there is no pitch, or where the pitch leaves it by more than 0.65 of a
        semitone for 50 ms. Shorter ones than 60 ms are left out.
        """
        edges = np.flatnonzero(np.diff(self.voiced.astype(np.int8), prepend=0, append=0))
        midi = self.midi - self.tuning_cents() / 100
        shortest = max(1, round(SHORTEST_NOTE_S / self.hop_s))
        return [
            (int(start + first), int(start + last), pitch)
            for start, end in zip(edges[::2], edges[1::2], strict=True)
            for first, last, pitch in _notes_of_run(midi[start:end], self.hop_s)
            if last - first >= shortest
        ]

    def to_notes(self, *, bends: bool = True) -> Notes:
        """The notes that are sung (see `spans`), with how their pitch moves unless `bends` is off.

        Louder notes have higher velocities where levels are known.
        """
        spans, midi = self.spans(), self.midi
        velocity = [self._velocity(first, last) for first, last, _ in spans]
        half = self.hop_s / 2
        points = [
            zip(
                np.maximum(self.time_s[first:last] - half, 0.0).tolist(),
                (midi[first:last] - pitch).tolist(),
                strict=True,
            )
            for first, last, pitch in spans
        ]
        return Notes.from_arrays(
            [max(0.0, self.time_s[first] - half) for first, _, _ in spans],
            [self.time_s[last - 1] + half for _, last, _ in spans],
            [pitch for _, _, pitch in spans],
            velocity,
            bends=Bends.from_points(points) if bends and spans else None,
        )

    def _velocity(self, first: int, last: int) -> int:
        if not len(self.level_db):
            return DEFAULT_VELOCITY
        loudest = float(np.percentile(self.level_db[first:last], 90))
        return int(np.clip(np.interp(loudest, [-50, -8], [20, 115]), 1, 127))

    # Files ------------------------------------------------------------------------------------

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row a frame: time_s,f0_hz,confidence. Raises OutputError."""
        rows = zip(self.time_s.tolist(), self.f0_hz.tolist(), self.confidence.tolist(), strict=True)
        lines = [f"{t:.6f},{f:.3f},{c:.4f}" for t, f, c in rows]
        with atomic_write(path) as file:
            file.write("\n".join([",".join(CSV_COLUMNS), *lines, ""]).encode())


def read_contour(path: str | os.PathLike[str]) -> Contour:
    """Read a CSV of time_s, f0_hz and perhaps confidence, with or without a header.

    Negative frequencies, with which some collections mark frames without pitch, become 0. Raises
    DataError when the file is missing or has something else in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the contour '{path}' ({error}).") from error
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [line.replace(";", ",").replace("\t", ",").split(",") for line in lines]
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]
    try:
        columns = [[float(row[i]) for row in rows] for i in (0, 1)]
        sure = [float(row[2]) for row in rows] if rows and len(rows[0]) > 2 else 1.0
    except (ValueError, IndexError):
        raise DataError(
            f"'{path}' is not a table of pitches; expected rows of {','.join(CSV_COLUMNS)}."
        ) from None
    return Contour.from_arrays(columns[0], np.maximum(columns[1], 0.0), sure)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _notes_of_run(midi: np.ndarray, hop_s: float) -> list[tuple[int, int, int]]:
    """Notes of a run of voiced frames: (first, last + 1, pitch)."""
    width = max(1, round(SMOOTH_S / hop_s))
    padded = np.pad(midi, (width // 2, width - 1 - width // 2), mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    patience = max(1, round(LEAVES_S / hop_s))
    found, start, away = [], 0, 0
    pitch = _pitch_from(smooth, 0, patience)
    for place, value in enumerate(smooth):
        away = away + 1 if abs(value - pitch) > LEAVES_SEMITONES else 0
        if away >= patience:
            begin = place - away + 1
            if begin > start:
                found.append((start, begin, _settled(midi[start:begin])))
            start, away = begin, 0
            pitch = _pitch_from(smooth, begin, patience)
    found.append((start, len(midi), _settled(midi[start:])))
    return found


def _pitch_from(smooth: np.ndarray, place: int, patience: int) -> float:
    """The pitch of a note that begins here, from its first frames."""
    return float(np.rint(np.median(smooth[place : place + 2 * patience])))


def _settled(midi: np.ndarray) -> int:
    return int(np.clip(np.rint(np.median(midi)), 0, 127))
