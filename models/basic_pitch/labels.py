"""Notes to training labels: contours, notes and onsets of every frame. NumPy only."""

import numpy as np

from musicjax.audio.cqt import num_cqt_frames
from musicjax.models.basic_pitch.model import BasicPitchConfig
from musicjax.notes import Notes


def targets(
    notes: Notes, start_s: float, num_samples: int, config: BasicPitchConfig
) -> dict[str, np.ndarray]:
    """Labels of the clip that starts at `start_s` and has `num_samples` samples, uint8 0/1.

    contour (T, contours), note and onset (T, P). An onset is the frame nearest to it; a note lasts
    from there to the frame nearest to its end, that one included. Its contour is the bin of its
    pitch, and follows its bends where it has them. Drums have no pitch and give nothing. Offsets
    are taken as they are: apply the pedal before, or do not.
    """
    count = num_cqt_frames(num_samples, config.frontend)
    pitch = np.asarray(notes.pitch, np.int64) - config.min_pitch
    fps = config.frontend.frames_per_s
    first = np.rint((notes.onset_s - start_s) * fps).astype(np.int64)
    last = np.rint((notes.offset_s - start_s) * fps).astype(np.int64)
    heard = (pitch >= 0) & (pitch < config.num_pitches) & ~notes.is_drum
    heard &= (last >= 0) & (first < count)
    notes, pitch, first, last = notes[heard], pitch[heard], first[heard], last[heard]

    onset = np.zeros((count, config.num_pitches), np.uint8)
    inside = first >= 0
    onset[first[inside], pitch[inside]] = 1
    start, stop = np.maximum(first, 0), np.minimum(last + 1, count)
    frames, owner = _rows(start, np.maximum(stop - start, 0))
    note = np.zeros_like(onset)
    note[frames, pitch[owner]] = 1
    bins = config.bins_per_semitone * pitch[owner] + config.contour_centre
    if notes.bends is not None:
        bins = bins + _bent(notes, frames / fps + start_s, owner, config.bins_per_semitone)
    contour = np.zeros((count, config.num_contours), np.uint8)
    there = (bins >= 0) & (bins < config.num_contours)
    contour[frames[there], bins[there]] = 1
    return {"contour": contour, "note": note, "onset": onset}


def _rows(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames of all notes end to end, and which note each belongs to."""
    owner = np.repeat(np.arange(len(start)), length)
    skipped = np.repeat(start - np.cumsum(length) + length, length)
    return skipped + np.arange(length.sum()), owner


def _bent(notes: Notes, time_s: np.ndarray, owner: np.ndarray, per_semitone: int) -> np.ndarray:
    """Contour bins by which each frame of each note is bent."""
    bins = np.zeros(len(owner), np.int64)
    assert notes.bends is not None
    for index in np.flatnonzero(notes.bends.count):
        mine = np.flatnonzero(owner == index)
        points_s, semitones = notes.bends.of(int(index))
        point = np.searchsorted(points_s, time_s[mine], side="right") - 1
        value = np.where(point >= 0, semitones[np.maximum(point, 0)], 0.0)
        bins[mine] = np.rint(value * per_semitone).astype(np.int64)
    return bins
