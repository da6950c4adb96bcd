"""Posteriors to notes with pitch bends, as the authors' code does it, without its slow loops.

Bittner et al. 2022, section 3.3. Onsets are taken from the last to the first; each follows its
pitch while the note posterior stays up, and takes that energy away from its neighbours. What is
left is then taken from the strongest cell outwards ("melodia trick"). Every note depends on those
before it, so there is a loop over notes, but none over frames, and the strongest cells are sorted
once instead of searched for again after every note.

Few cells can be in any note: those above the threshold, and short gaps between them. Only these are
kept while posteriors come in (`NoteCreation`), and notes are then searched from rest to rest, since
none reaches across frames in which no pitch is up. So a day of posteriors is never held at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from musicjax.errors import ConfigError
from musicjax.models.basic_pitch.model import BasicPitchConfig, frame_times
from musicjax.notes import Bends, Notes

PATIENCE = 11  # frames below the threshold after which a note is over
BEND_REACH = 25  # contour bins to either side in which a note's pitch is looked for
BEND_WIDTH = 5.0  # deviation of the Gaussian that weights them
INFERRED_FROM = 2  # frames back to which a rise of the note posterior is compared
PROGRAM = 4  # Electric Piano 1, which the authors write

_HALO = PATIENCE + INFERRED_FROM + 1  # frames on both sides that decide what is kept of a frame
_BLOCK = 1 << 12  # frames looked at together while they come in
_PIECE = 1 << 14  # frames searched together, at least; from there on, to the next rest
_ROWS = 1 << 14  # cells whose bends are found together
_NOTES = 1 << 12  # that are written together
_CELLS = 1 << 12  # cells from which notes are begun before those that were taken are left out
_QUIET = bytes(PATIENCE)


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
    creation = NoteCreation(
        config,
        onset_threshold=onset_threshold,
        frame_threshold=frame_threshold,
        min_duration_s=min_duration_s,
        min_hz=min_hz,
        max_hz=max_hz,
        infer_onsets=infer_onsets,
        melodia_trick=melodia_trick,
        pitch_bends=pitch_bends,
        contour_centre=contour_centre,
        times=times,
        program=program,
    )
    for begin in range(0, len(activations["note"]), _BLOCK):
        creation.add({name: roll[begin : begin + _BLOCK] for name, roll in activations.items()})
    return creation.done()


@dataclass(frozen=True)
class _Kept:
    """The cells of some frames that can be in a note, by frame and then by pitch."""

    first: int  # frame, counted in the recording
    cell: np.ndarray  # (K,) int32: pitches times the frame, counted from the first, and the pitch
    note: np.ndarray  # (K,) float32, posterior
    bend: np.ndarray | None  # (K,) int8, contour bins from the pitch's own to the strongest near it
    up: np.ndarray  # (T,) bool: whether any pitch reaches the threshold in a frame


@dataclass(frozen=True)
class _Onsets:
    """Cells that may be peaks of the onset posterior, with its frame before and after."""

    frame: np.ndarray  # (K,) int64, counted in the recording
    pitch: np.ndarray  # (K,) int64
    onset: np.ndarray  # (3, K) float32, posterior
    rise: np.ndarray  # (3, K) float32, of the note posterior


class NoteCreation:
    """`decode` of posteriors that come in one after the other, with its options. The same notes.

    Of each second some ten kilobytes are kept at most, usually two. The scale of inferred onsets is
    that of the whole recording, so that all notes are made at the end.
    """

    def __init__(
        self,
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
    ) -> None:
        def chosen(given: Any, usual: Any) -> Any:
            return usual if given is None else given

        if times not in (None, "published", "exact"):
            raise ConfigError(f"times is {times!r}; it must be 'published' or 'exact'.")
        self.config = config if times is None else replace(config, frame_times=times)
        self.onset_threshold = float(chosen(onset_threshold, config.onset_threshold))
        self.threshold = float(chosen(frame_threshold, config.frame_threshold))
        if not self.threshold > 0:
            raise ConfigError(
                f"frame_threshold is {self.threshold:g}; it must be above 0, or no note would end."
            )
        duration_s = chosen(min_duration_s, config.min_duration_s)
        self.shortest = int(np.round(duration_s * config.frontend.frames_per_s))
        self.heard = slice(
            0 if min_hz is None else _index(min_hz, config),
            config.num_pitches if max_hz is None else _index(max_hz, config),
        )
        self.infer_onsets, self.melodia_trick = infer_onsets, melodia_trick
        self.bends, self.program = pitch_bends, program
        self.centre = chosen(contour_centre, config.contour_centre)
        self._waiting: list[dict[str, np.ndarray]] = []
        self._first = 0  # frame at which what waits begins
        self._looked = 0  # frames that have been looked at
        self._kept: list[_Kept] = []
        self._onsets: list[_Onsets] = []
        self._top_onset = self._top_rise = np.float32(0)

    @property
    def confidence(self) -> float | None:
        """Not known: of the onsets only those are kept that are peaks."""
        return None

    def add(self, activations: Mapping[str, np.ndarray]) -> None:
        """Take the next frames, any number."""
        names = ("note", "onset", "contour") if self.bends else ("note", "onset")
        self._waiting.append({name: np.asarray(activations[name]) for name in names})
        if self._first + self._frames() - self._looked >= _BLOCK:
            self._look(is_last=False)

    def done(self) -> Notes:
        """The notes of all that came."""
        if self._waiting:
            self._look(is_last=True)
        edges = self._rests()
        time_s = frame_times(edges[-1], self.config)
        frame, pitch = self._peaks()
        parts = []
        for begin, end in pairwise(edges):
            # Where the recording goes on, a frame of the rest stands for what follows.
            piece = _Piece(self, begin, end, min(end + 1, edges[-1]))
            low, high = np.searchsorted(frame, (begin, end))
            peaks = zip(frame[low:high] - begin, pitch[low:high], strict=True)
            found = piece.from_onsets([(int(a), int(p)) for a, p in peaks][::-1])
            if self.melodia_trick:
                found += piece.from_remains()
            parts += piece.notes(found, time_s)
        return Notes.concat(parts)

    def _frames(self) -> int:
        return sum(len(part["note"]) for part in self._waiting)

    def _look(self, *, is_last: bool) -> None:
        """Keep of what waits what may be needed, up to where the next frames matter."""
        waiting = self._waiting
        rolls = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
        low, high = self._looked - self._first, len(rolls["note"]) - (0 if is_last else _HALO)
        if high <= low:
            self._waiting = [rolls]
            return
        note, onset = (self._within(rolls[name]) for name in ("note", "onset"))
        up = ~(note < self.threshold)
        begins = self._note_peaks(onset, rises(note), low, high)
        seeds = up | begins
        reach = PATIENCE - 1  # frames of the longest gap inside a note
        keep = seeds | (_spread(seeds, reach) & _spread(up[::-1], reach)[::-1])
        frame, pitch = np.nonzero(keep[low:high])
        bend = None
        if self.bends:
            bend = contour_bins(rolls["contour"][low:high], frame, pitch, self.config)
        cell = (frame * note.shape[1] + pitch).astype(np.int32)
        sounds = np.logical_or.reduce(up[low:high], axis=1)
        kept = _Kept(self._looked, cell, note[low:high][frame, pitch], bend, sounds)
        self._kept.append(kept)
        self._looked = self._first + high
        rest = max(high - _HALO, 0)
        self._waiting = [{name: roll[rest:].copy() for name, roll in rolls.items()}]
        self._first += rest

    def _within(self, roll: np.ndarray) -> np.ndarray:
        """A copy in float32, without the pitches that are not wanted."""
        found = np.zeros(roll.shape, np.float32)
        found[:, self.heard] = roll[:, self.heard]
        return found

    def _note_peaks(self, onset: np.ndarray, rise: np.ndarray, low: int, high: int) -> np.ndarray:
        """Where onsets may peak (T, P); those of the frames from `low` to `high` are noted."""
        begins = _peaks(onset) & (onset >= self.onset_threshold)
        if self.infer_onsets:
            self._top_onset = max(self._top_onset, onset.max())
            self._top_rise = max(self._top_rise, rise.max())
            # How rises will be scaled is known at the end: by no more than this.
            most = max(float(self._top_onset), 1.0) / max(float(self._top_rise), 1e-30)
            least = (1 - 1e-5) * self.onset_threshold / most
            begins |= _peaks(rise) & (rise >= least)
        frame, pitch = np.nonzero(begins[low:high])
        frame += low
        around = frame + np.array([[-1], [0], [1]])
        rows = _Onsets(self._first + frame, pitch, onset[around, pitch], rise[around, pitch])
        self._onsets.append(rows)
        return begins

    def _peaks(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and pitches at which notes may begin, by frame and then by pitch.

        Peaks of the onset posterior, or of the rise of the note posterior where that is more,
        scaled to the same maximum.
        """
        found = [np.zeros((2, 0), np.int64)]
        for rows in self._onsets:
            onset = rows.onset
            if self.infer_onsets and self._top_rise > 0:
                # In this order the steepest rise comes out as high as the highest onset, which
                # often is the frame after it: an ulp more or less would move the note.
                onset = np.maximum(onset, self._top_onset * rows.rise / self._top_rise)
            before, top, after = onset
            peak = (top > before) & (top > after) & (top >= self.onset_threshold)
            found.append(np.stack([rows.frame[peak], rows.pitch[peak]]))
        frame, pitch = np.concatenate(found, axis=1)
        return frame, pitch

    def _rests(self) -> list[int]:
        """Frames at which the search can begin anew, with the first and the last of all.

        No note reaches from before such a frame to behind it, nor looks so far.
        """
        count = self._looked
        each = [kept.first + np.flatnonzero(kept.up) for kept in self._kept]
        up = np.concatenate([np.zeros(0, np.int64), *each])
        long = np.flatnonzero(np.diff(up) > 2 * (PATIENCE + 2))
        middle = (up[long] + up[long + 1] + 1) // 2
        edges = [0]
        while edges[-1] + _PIECE < count:
            place = np.searchsorted(middle, edges[-1] + _PIECE)
            if place == len(middle):
                break
            edges.append(int(middle[place]))
        return [*edges, count]

    def cells(self, begin: int, end: int) -> tuple[np.ndarray, ...]:
        """What is kept of some frames: frame, counted from the first of them, pitch, posterior.

        And contour bins, if they are wanted.
        """
        pitches, bins = self.config.num_pitches, [np.zeros(0, np.int8)]
        columns = [(np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.float32))]
        for kept in self._kept:
            if kept.first >= end or kept.first + len(kept.up) <= begin:
                continue
            edges = (begin - kept.first) * pitches, (end - kept.first) * pitches
            part = slice(*np.searchsorted(kept.cell, edges))
            frame, pitch = np.divmod(kept.cell[part], pitches)
            frame += kept.first - begin
            columns.append((frame, pitch.astype(np.int16), kept.note[part]))
            if kept.bend is not None:
                bins.append(kept.bend[part])
        joined = tuple(np.concatenate(column) for column in zip(*columns, strict=True))
        return (*joined, np.concatenate(bins)) if self.bends else joined


class _Piece:
    """The search for notes in some frames: which cells are up, and are not taken by a note yet."""

    def __init__(self, creation: NoteCreation, begin: int, end: int, seen: int) -> None:
        self.creation, self.begin, self.count = creation, begin, seen - begin
        self.frame, self.pitch, self.note, *self.bend = creation.cells(begin, end)
        pitches = creation.config.num_pitches
        # A row of bytes a pitch, in which runs are found by `find`, and one at either side.
        self.rows = bytearray((pitches + 2) * self.count)
        self.up = np.frombuffer(self.rows, np.uint8).reshape(pitches + 2, self.count)
        up = ~(self.note < creation.threshold)
        self.up[self.pitch[up] + 1, self.frame[up]] = 1

    def from_onsets(self, peaks: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """Notes that begin at the peaks, in the order given; their energy is taken.

        First frame, frame after the last, pitch index.
        """
        rows, up, shortest = self.rows, self.up, self.creation.shortest
        found = []
        for first, key in peaks:
            row = (key + 1) * self.count
            at, end = row + first, row + self.count - 1  # the last frame is never looked at
            stop = rows.find(_QUIET, at + 1, end)
            if stop < 0:
                stop = max(rows.rfind(1, at + 1, end), at) + 1
            stop -= row
            if stop - first > shortest:
                up[key : key + 3, first:stop] = 0
                found.append((first, stop, key))
        return found

    def from_remains(self) -> list[tuple[int, int, int]]:
        """Notes around the strongest cells that are left, from strong to weak; they are taken.

        Cells only ever lose their energy, so the order in which they are strongest is known
        beforehand.
        """
        rows, up, shortest = self.rows, self.up, self.creation.shortest
        found = []
        left = np.flatnonzero(self.note > self.creation.threshold)
        left = left[up[self.pitch[left] + 1, self.frame[left]] > 0]
        left = left[np.argsort(-self.note[left], kind="stable")]
        for begin in range(0, len(left), _CELLS):
            some = left[begin : begin + _CELLS]
            some = some[up[self.pitch[some] + 1, self.frame[some]] > 0]
            places = self.frame[some].tolist(), self.pitch[some].tolist()
            for middle, key in zip(*places, strict=True):
                row = (key + 1) * self.count
                at, end = row + middle, row + self.count - 1
                if not rows[at]:
                    continue
                rows[at] = 0
                quiet = rows.find(_QUIET, at + 1, end)
                seen = end if quiet < 0 else quiet + PATIENCE
                stop = max(rows.rfind(1, at + 1, end), at) if quiet < 0 else quiet - 1
                up[key : key + 3, middle + 1 : seen - row] = 0
                quiet = rows.rfind(_QUIET, row + 1, at)
                seen = row + 1 if quiet < 0 else quiet
                start = rows.find(1, row + 1, at) if quiet < 0 else quiet + PATIENCE
                start = at if start < 0 else start
                up[key : key + 3, seen - row : middle] = 0
                if stop - start > shortest:
                    found.append((start - row, stop - row, key))
        return found

    def notes(self, found: list[tuple[int, int, int]], time_s: np.ndarray) -> list[Notes]:
        """Notes of what was found, by onset and then by pitch, some thousands together."""
        rows = np.array(found, np.int64).reshape(-1, 3)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        by_pitch = np.argsort(self.pitch, kind="stable")
        place = self.pitch[by_pitch] * np.int64(self.count)
        place += self.frame[by_pitch]
        note = self.note[by_pitch]
        bend = self.bend[0][by_pitch] if self.bend else None
        made = []
        for begin in range(0, len(rows), _NOTES):
            start, stop, pitch = rows[begin : begin + _NOTES].T
            at = np.searchsorted(place, pitch * self.count + start)  # all frames of a note follow
            mean = [note[a : a + n].mean() for a, n in zip(at, stop - start, strict=True)]
            bins = None if bend is None else bend[_runs(at, stop - start)].astype(np.int64)
            made.append(self._notes(start, stop, pitch, np.array(mean), bins, time_s))
        return made

    def _notes(
        self,
        start: np.ndarray,
        stop: np.ndarray,
        pitch: np.ndarray,
        strength: np.ndarray,
        bins: np.ndarray | None,
        time_s: np.ndarray,
    ) -> Notes:
        config, bends = self.creation.config, None
        start, stop = self.begin + start, self.begin + stop
        if bins is not None:
            semitones = (bins - self.creation.centre) / config.bins_per_semitone
            bends = _as_bends(semitones, time_s, start, stop)
        return Notes.from_arrays(
            onset_s=time_s[start],
            offset_s=time_s[stop],
            pitch=pitch + config.min_pitch,
            velocity=np.round(127 * strength).astype(np.uint8),
            program=self.creation.program,
            bends=bends,
        )


def _index(hz: float, config: BasicPitchConfig) -> int:
    """The first pitch from a frequency on."""
    if not hz > 0:
        raise ConfigError(f"a frequency limit is {hz:g} Hz; it must be above 0.")
    key = round(69 + 12 * float(np.log2(hz / 440.0))) - config.min_pitch
    return int(np.clip(key, 0, config.num_pitches))


def rises(note: np.ndarray) -> np.ndarray:
    """How the note posterior rises: over one and over two frames, whichever is less. (T, P)."""
    rise = np.zeros_like(note)
    if len(note) > INFERRED_FROM:
        later = note[INFERRED_FROM:]
        steps = [later - note[INFERRED_FROM - n : len(note) - n] for n in (1, 2)]
        rise[INFERRED_FROM:] = np.maximum(np.minimum(*steps), 0)
    return rise


def _peaks(roll: np.ndarray) -> np.ndarray:
    """Which cells (T, P) are above both their neighbours in time."""
    peak = np.zeros(roll.shape, bool)
    higher = roll[1:] > roll[:-1]
    peak[1:-1] = higher[:-1] & (roll[1:-1] > roll[2:])
    return peak


def _spread(roll: np.ndarray, frames: int) -> np.ndarray:
    """Where a boolean roll (T, P) is on or was so within some frames."""
    roll, done = roll.copy(), 0
    while done < frames:
        step = min(done + 1, frames - done)
        roll[step:] |= roll[:-step].copy()
        done += step
    return roll


def contour_bins(
    contour: np.ndarray, frame: np.ndarray, pitch: np.ndarray, config: BasicPitchConfig
) -> np.ndarray:
    """Contour bins from each cell's own to the strongest one near it, int8."""
    reach = np.arange(-BEND_REACH, BEND_REACH + 1)
    weight = np.exp(-0.5 * (reach / BEND_WIDTH) ** 2)
    dtype = np.result_type(contour.dtype, np.float32)
    wide = np.full((len(contour), config.num_contours + 2 * BEND_REACH), -1.0, dtype)
    wide[:, BEND_REACH:-BEND_REACH] = contour
    near = np.lib.stride_tricks.sliding_window_view(wide, len(reach), axis=1)
    near = near[:, :: config.bins_per_semitone]  # (T, P, bins)
    bins = np.empty(len(frame), np.int8)
    for begin in range(0, len(frame), _ROWS):
        rows = slice(begin, begin + _ROWS)
        bins[rows] = reach[np.argmax(near[frame[rows], pitch[rows]] * weight, axis=1)]
    return bins


def _runs(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its length, one run after the other."""
    return np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)


def _as_bends(
    semitones: np.ndarray, time_s: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> Bends:
    """Points where the bend changes; a note that is never bent has none."""
    length = stop - start
    owner = np.repeat(np.arange(len(start)), length)
    frame = _runs(start, length)
    begins = np.concatenate([[True], owner[1:] != owner[:-1]])
    before = np.where(begins, 0.0, np.concatenate([[0.0], semitones[:-1]]))
    point = semitones != before
    count = np.bincount(owner[point], minlength=len(start))
    return Bends(count, time_s[frame[point]], semitones[point])
