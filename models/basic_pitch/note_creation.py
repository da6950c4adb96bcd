"""Posteriors to notes with pitch bends, as the authors' code does it, without its slow loops.

Bittner et al. 2022, section 3.3. Onsets are taken from the last to the first; each follows its
pitch while the note posterior stays up, and takes that energy away from its neighbours. What is
left is then taken from the strongest cell outwards ("melodia trick"). Every note depends on those
before it, so there is a loop over notes, but none over frames, and the strongest cells are sorted
once instead of searched for again after every note.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from musicjax.errors import ConfigError
from musicjax.models.basic_pitch.model import BasicPitchConfig, frame_times
from musicjax.notes import Bends, Notes

PATIENCE = 11  # frames below the threshold after which a note is over
BEND_REACH = 25  # contour bins to either side in which a note's pitch is looked for
BEND_WIDTH = 5.0  # deviation of the Gaussian that weights them
INFERRED_FROM = 2  # frames back to which a rise of the note posterior is compared
_CHUNK = 256  # frames looked at together when the end of a note is searched
_ROWS = 1 << 14  # frames whose bends are found together
PROGRAM = 4  # Electric Piano 1, which the authors write

_Found = list[tuple[int, int, int]]  # first frame, frame after the last, pitch index


def decode(
    activations: Mapping[str, np.ndarray],
    config: BasicPitchConfig,
    *,
    onset_threshold: float | None = None,
    frame_threshold: float | None = None,
    min_duration_s: float | None = None,
    min_hz: float | None = None,
    max_hz: float | None = None,
    infer_onsets: bool = True,
    melodia_trick: bool = True,
    pitch_bends: bool = True,
    contour_centre: int | None = None,
    times: Literal["published", "exact"] | None = None,
    program: int = PROGRAM,
) -> Notes:
    """Notes from the posteriors of one recording: note and onset (T, P), contour (T, contours).

    A note starts at a peak of the onset posterior of at least `onset_threshold`, or with
    `infer_onsets` at a jump of the note posterior, and lasts until that stays below
    `frame_threshold` for 11 frames. With `melodia_trick` notes are also made of what is left above
    it. Notes of `min_duration_s` or shorter, and pitches outside `min_hz` to `max_hz`, are left
    out. Velocity is 127 times the mean note posterior. With `pitch_bends` each note follows the
    strongest contour within 8 semitones, in steps of a third of a semitone; `contour_centre` is the
    bin of three from which bends count (0: the authors' reading, in which a tone that is in tune
    bends up by a third of a semitone with their weights). `times` "published" or "exact" is
    explained at `frame_times`. What is None is the config's.
    """
    note, onset = (np.array(activations[name], np.float32) for name in ("note", "onset"))
    for roll in (note, onset):
        _silence_outside(roll, min_hz, max_hz, config)
    if onset_threshold is None:
        onset_threshold = config.onset_threshold
    if frame_threshold is None:
        frame_threshold = config.frame_threshold
    if min_duration_s is None:
        min_duration_s = config.min_duration_s
    if times is not None:
        if times not in ("published", "exact"):
            raise ConfigError(f"times is {times!r}; it must be 'published' or 'exact'.")
        config = replace(config, frame_times=times)
    shortest = int(np.round(min_duration_s * config.frontend.frames_per_s))
    if infer_onsets:
        onset = inferred_onsets(onset, note)
    left = note.copy()
    found = _from_onsets(onset, left, onset_threshold, frame_threshold, shortest)
    if melodia_trick:
        found += _from_remains(left, frame_threshold, shortest)
    start, stop, pitch = np.array(found, np.int64).reshape(-1, 3).T
    order = np.lexsort((pitch, start))
    start, stop, pitch = start[order], stop[order], pitch[order]
    amplitude = np.array([note[a:b, p].mean() for a, b, p in zip(start, stop, pitch, strict=True)])
    time_s = frame_times(len(note), config)
    bends = None
    if pitch_bends and len(start):
        centre = config.contour_centre if contour_centre is None else contour_centre
        bins = contour_bends(activations["contour"], start, stop, pitch, config) - centre
        bends = _as_bends(bins / config.bins_per_semitone, time_s, start, stop)
    return Notes.from_arrays(
        onset_s=time_s[start],
        offset_s=time_s[stop],
        pitch=pitch + config.min_pitch,
        velocity=np.round(127 * amplitude).astype(np.uint8),
        program=program,
        bends=bends,
    )


def _silence_outside(
    roll: np.ndarray, min_hz: float | None, max_hz: float | None, config: BasicPitchConfig
) -> None:
    """Zero the pitches below `min_hz`, and those from `max_hz` on, in place."""

    def index(hz: float) -> int:
        if not hz > 0:
            raise ConfigError(f"a frequency limit is {hz:g} Hz; it must be above 0.")
        key = round(69 + 12 * float(np.log2(hz / 440.0))) - config.min_pitch
        return int(np.clip(key, 0, config.num_pitches))

    if min_hz is not None:
        roll[:, : index(min_hz)] = 0
    if max_hz is not None:
        roll[:, index(max_hz) :] = 0


def inferred_onsets(onset: np.ndarray, note: np.ndarray) -> np.ndarray:
    """The onset posterior, or the rise of the note posterior where that is more. (T, P) float32.

    The rise is over one and over two frames, whichever is less, scaled to the same maximum.
    """
    rise = np.zeros_like(note)
    if len(note) > INFERRED_FROM:
        later = note[INFERRED_FROM:]
        steps = [later - note[INFERRED_FROM - n : len(note) - n] for n in (1, 2)]
        rise[INFERRED_FROM:] = np.maximum(np.minimum(*steps), 0)
    top = rise.max(initial=0.0)
    if top > 0:
        rise *= onset.max() / top
    return np.maximum(onset, rise)


def _peaks(roll: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames and pitches that are above both neighbours in time and reach the threshold."""
    middle = roll[1:-1]
    is_peak = (middle > roll[:-2]) & (middle > roll[2:]) & (middle >= threshold)
    frame, pitch = np.nonzero(is_peak)
    return frame + 1, pitch


def _reach(column: np.ndarray, threshold: float) -> tuple[int, int]:
    """How far a note goes on in a column: frames up to the last one that is up, and frames seen.

    Looks until `PATIENCE` frames in a row are below the threshold, or to the end.
    """
    last = 0  # frames up to and including the last that is up
    for begin in range(0, len(column), _CHUNK):
        up = begin + 1 + np.flatnonzero(~(column[begin : begin + _CHUNK] < threshold))
        ends = np.concatenate([[last], up])
        gap = np.flatnonzero(np.diff(ends) > PATIENCE)
        if len(gap):
            return int(ends[gap[0]]), int(ends[gap[0]]) + PATIENCE
        last = int(ends[-1])
        seen = min(begin + _CHUNK, len(column))
        if seen - last >= PATIENCE:
            return last, last + PATIENCE
    return last, len(column)


def _from_onsets(
    onset: np.ndarray, left: np.ndarray, onset_threshold: float, threshold: float, shortest: int
) -> _Found:
    """Notes that begin at peaks of the onset posterior, the last first; their energy is taken."""
    found: _Found = []
    total = len(left)
    frame, pitch = _peaks(onset, onset_threshold)
    for first, key in zip(frame[::-1].tolist(), pitch[::-1].tolist(), strict=True):
        if first >= total - 1:
            continue
        last, _ = _reach(left[first + 1 : total - 1, key], threshold)
        stop = first + 1 + last
        if stop - first <= shortest:
            continue
        left[first:stop, max(key - 1, 0) : key + 2] = 0
        found.append((first, stop, key))
    return found


def _from_remains(left: np.ndarray, threshold: float, shortest: int) -> _Found:
    """Notes around the strongest cells that are left, from strong to weak; their energy is taken.

    Cells only ever lose their energy, so the order in which they are strongest is known beforehand.
    """
    found: _Found = []
    total, pitches = left.shape
    cells = np.flatnonzero(left > threshold)
    cells = cells[np.argsort(-left.reshape(-1)[cells], kind="stable")]
    for cell in cells.tolist():
        middle, key = divmod(cell, pitches)
        if left[middle, key] <= threshold:
            continue
        left[middle, key] = 0
        near = slice(max(key - 1, 0), key + 2)
        last, seen = _reach(left[middle + 1 : total - 1, key], threshold)
        stop = middle + last
        left[middle + 1 : middle + 1 + seen, near] = 0
        back = left[1:middle, key][::-1]
        first, seen = _reach(back, threshold)
        start = middle - first
        left[max(middle - seen, 0) : middle, near] = 0
        if stop - start > shortest:
            found.append((start, stop, key))
    return found


def contour_bends(
    contour: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    pitch: np.ndarray,
    config: BasicPitchConfig,
) -> np.ndarray:
    """Contour bins from each note's own to the strongest one near it, for all frames of all notes.

    int64, the frames of the first note, then those of the second, and so on.
    """
    length = stop - start
    owner = np.repeat(np.arange(len(start)), length)
    frame = np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)
    reach = np.arange(-BEND_REACH, BEND_REACH + 1)
    weight = np.exp(-0.5 * (reach / BEND_WIDTH) ** 2)
    bins = np.empty(len(frame), np.int64)
    for begin in range(0, len(frame), _ROWS):
        rows = slice(begin, begin + _ROWS)
        column = config.bins_per_semitone * pitch[owner[rows], None] + reach
        there = (column >= 0) & (column < config.num_contours)
        near = contour[frame[rows, None], np.clip(column, 0, config.num_contours - 1)]
        strength = np.where(there, near * weight, -1.0)
        bins[rows] = reach[np.argmax(strength, axis=1)]
    return bins


def _as_bends(
    semitones: np.ndarray, time_s: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> Bends:
    """Points where the bend changes; a note that is never bent has none."""
    length = stop - start
    owner = np.repeat(np.arange(len(start)), length)
    frame = np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)
    begins = np.concatenate([[True], owner[1:] != owner[:-1]])
    before = np.where(begins, 0.0, np.concatenate([[0.0], semitones[:-1]]))
    point = semitones != before
    count = np.bincount(owner[point], minlength=len(start))
    return Bends(count, time_s[frame[point]], semitones[point])
