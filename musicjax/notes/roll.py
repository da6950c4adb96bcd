"""Notes on a grid of frames and pitches, and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from musicjax.errors import DataError
from musicjax.notes.notes import Notes


@dataclass(frozen=True, eq=False)
class PianoRoll:
    """Frames of a piece, T in time and P pitches from `min_pitch` up.

    onset: true in the one frame nearest a note's beginning. frame: true while a note sounds.
    velocity: 1..127 while a note sounds, 0 elsewhere.
    """

    onset: Bool[np.ndarray, "T P"]
    frame: Bool[np.ndarray, "T P"]
    velocity: UInt8[np.ndarray, "T P"]
    frames_per_s: float
    min_pitch: int = 21


def piano_roll(
    notes: Notes,
    frames_per_s: float,
    num_frames: int | None = None,
    *,
    min_pitch: int = 21,
    num_pitches: int = 88,
) -> PianoRoll:
    """Draw notes on a grid; frame i stands for the time i / frames_per_s.

    A note fills the frames from the one nearest its onset up to, not including, the one nearest its
    offset, and at least one. Where notes of one pitch overlap, the later onset gives the velocity.
    The grid has the 88 keys of a piano unless told otherwise.
    `num_frames` defaults to just enough for all notes; what lies outside the grid is left out, and
    so are drums. Offsets are taken as they are: use `notes.sustained()` for what the pedal holds.
    """
    if not frames_per_s > 0:
        raise DataError(f"frames_per_s must be above 0; got {frames_per_s}.")
    inside = (notes.pitch >= min_pitch) & (notes.pitch < min_pitch + num_pitches)
    notes = notes[inside & ~notes.is_drum].sorted()
    first, end = frame_spans(notes, frames_per_s)
    if num_frames is None:
        num_frames = int(end.max(initial=0))
    column = notes.pitch.astype(np.int64) - min_pitch
    velocity = np.zeros((num_frames, num_pitches), dtype=np.uint8)
    start, stop = np.clip(first, 0, num_frames), np.clip(end, 0, num_frames)
    lengths = stop - start
    # Every cell of every note, note after note, so that a later note overwrites an earlier one.
    skipped = np.cumsum(lengths) - lengths
    rows = np.arange(lengths.sum()) + np.repeat(start - skipped, lengths)
    velocity[rows, np.repeat(column, lengths)] = np.repeat(np.maximum(notes.velocity, 1), lengths)
    onset = np.zeros((num_frames, num_pitches), dtype=bool)
    begins = (first >= 0) & (first < num_frames)
    onset[first[begins], column[begins]] = True
    return PianoRoll(onset, velocity > 0, velocity, frames_per_s, min_pitch)


def from_piano_roll(roll: PianoRoll) -> Notes:
    """The notes of a roll: each onset, or frame without one before it, begins a note.

    A note lasts while its frames do, or until the next onset of its pitch, and has the velocity of
    its first frame. For notes that lie on the grid and do not overlap this undoes `piano_roll`.
    """
    frame = (roll.frame | roll.onset).T  # P T, so that one pitch after the other is scanned
    before = np.pad(frame, ((0, 0), (1, 0)))[:, :-1]
    starts = frame & (roll.onset.T | ~before)
    following = np.pad(frame & ~starts, ((0, 0), (0, 1)))[:, 1:]
    pitch, first = np.nonzero(starts)
    _, last = np.nonzero(frame & ~following)  # the last frame of each note, in the same order
    return Notes.from_arrays(
        first / roll.frames_per_s,
        (last + 1) / roll.frames_per_s,
        pitch + roll.min_pitch,
        np.maximum(roll.velocity.T[pitch, first], 1),
    ).sorted()


def frame_spans(
    notes: Notes, frames_per_s: float
) -> tuple[Int64[np.ndarray, " notes"], Int64[np.ndarray, " notes"]]:
    """The first frame of each note and the frame after its last; at least one frame each."""
    first = np.rint(notes.onset_s * frames_per_s).astype(np.int64)
    end = np.rint(notes.offset_s * frames_per_s).astype(np.int64)
    return first, np.maximum(end, first + 1)
