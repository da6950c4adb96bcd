"""From regressed onsets, offsets and frames to notes and pedal, with times between frames.

Kong et al. 2021, section III-D, and the authors' code. Each onset makes one note, whose end follows
from what comes first after it, so that all notes of all pitches are found together.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from musicjax.models.kong2021.model import Kong2021Config
from musicjax.notes import Notes, Pedal, PieceDecoder

ONSET_NEIGHBOURS = 2  # frames to both sides over which a peak must fall
OFFSET_NEIGHBOURS = 4
LONGEST_S = 6.0  # a note whose end is not heard ends after it
PEDAL_PATIENCE = 10  # frames that an offset may come after the pedal's frames are off
_CELLS_AT_ONCE = 1 << 21  # frames times pitches decoded together


def decode(
    activations: Mapping[str, np.ndarray],
    config: Kong2021Config,
    *,
    onset_threshold: float | None = None,
    offset_threshold: float | None = None,
    frame_threshold: float | None = None,
    pedal_offset_threshold: float | None = None,
    pedal: bool = True,
) -> Notes:
    """Notes and pedal from activations (T, P) and (T, 1) of one recording.

    A note starts at a peak of the onset curve above its threshold, and ends at the next onset of
    its pitch, or where the frame curve falls to its threshold (at the offset peak before, if that
    is nearer to there than to the onset), or after 6 s. Onset and offset are moved to the top of
    the triangle that the three values around the peak tell. The sustain pedal goes down where its
    frame curve rises above one half, and up at the next offset peak, or where the frame curve fell
    if none comes within 10 frames; without `pedal` it is left out. Velocity is that at the onset.
    What is None is the config's.
    """
    if onset_threshold is None:
        onset_threshold = config.onset_threshold
    if offset_threshold is None:
        offset_threshold = config.offset_threshold
    if frame_threshold is None:
        frame_threshold = config.frame_threshold
    if pedal_offset_threshold is None:
        pedal_offset_threshold = config.pedal_offset_threshold
    count, pitches = np.shape(activations["onset"])
    groups = min(pitches, 1 + count * pitches // _CELLS_AT_ONCE)
    edges = [pitches * g // groups for g in range(groups + 1)]
    found = []
    for low, high in pairwise(edges):
        some = {
            name: np.asarray(activations[name])[:, low:high]
            for name in ("onset", "offset", "frame", "velocity")
        }
        *times, pitch, strength = _notes(
            some, onset_threshold, offset_threshold, frame_threshold, config
        )
        found.append((*times, pitch + low, strength))
    onset, offset, pitch, strength = (np.concatenate(column) for column in zip(*found, strict=True))
    onset = np.maximum(onset, 0.0) / config.frames_per_s
    offset = np.maximum(offset / config.frames_per_s, onset)
    order = np.lexsort((pitch, onset))
    velocity = np.clip((strength * config.velocity_scale).astype(np.int64), 1, 127)
    events = _pedal(activations, pedal_offset_threshold, config) if pedal else None
    return Notes.from_arrays(
        onset_s=onset[order],
        offset_s=offset[order],
        pitch=pitch[order] + config.min_pitch,
        velocity=velocity[order],
        pedal=events,
    )


class LongRecording(PieceDecoder):
    """`decode` of a long recording while it is heard.

    The curves of the pedal, two numbers a frame, are kept: how it moves depends on all before.
    """

    def __init__(
        self,
        config: Kong2021Config,
        *,
        pedal: bool = True,
        pedal_offset_threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            partial(decode, config=config, pedal=False, **options),
            config.frames_per_s,
            before=2 * OFFSET_NEIGHBOURS,
            after=2 * OFFSET_NEIGHBOURS,
            reach=round(LONGEST_S * config.frames_per_s) + 2 * OFFSET_NEIGHBOURS,
        )
        self.config = config
        self.pedal_offset_threshold = pedal_offset_threshold
        self._pedal = ("pedal_frame", "pedal_offset") if pedal else ()
        self._curves: dict[str, list[np.ndarray]] = {}

    def add(self, activations: Mapping[str, np.ndarray]) -> None:
        """Take the next frames, any number."""
        rolls = dict(activations)
        for name in self._pedal:
            if name in rolls:
                self._curves.setdefault(name, []).append(rolls.pop(name))
        super().add(rolls)

    def done(self) -> Notes:
        """The notes and the pedal of all frames."""
        curves = {name: np.concatenate(parts) for name, parts in self._curves.items()}
        threshold = self.pedal_offset_threshold
        if threshold is None:
            threshold = self.config.pedal_offset_threshold
        return replace(super().done(), pedal=_pedal(curves, threshold, self.config))


def peaks(curve: np.ndarray, threshold: float, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a curve (T, P) peaks above the threshold (T, P) bool, and how far off (T, P) frames.

    A peak does not rise going away from it, over so many frames to both sides. The label is a
    triangle of known slope, so the three values around its top tell where the top was: equation 8.
    """
    curve = np.asarray(curve, np.float32)
    count = len(curve)
    is_peak = curve > threshold
    if count <= 2 * neighbours:  # too short for any
        return np.zeros_like(is_peak), np.zeros(curve.shape, np.float32)
    is_peak[:neighbours] = False
    is_peak[max(count - neighbours, 0) :] = False
    falls = curve[1:] <= curve[:-1]  # from t to t + 1
    rises = curve[1:] >= curve[:-1]
    for away in range(neighbours):
        is_peak[: count - 1 - away] &= falls[away:]
        is_peak[1 + away :] &= rises[: count - 1 - away]
    frame, pitch = np.nonzero(is_peak)
    before, top, after = (curve[frame + d, pitch].astype(np.float64) for d in (-1, 0, 1))
    height = top - np.minimum(before, after)
    moved = np.zeros(len(frame))
    np.divide(after - before, 2 * height, out=moved, where=height > 0)
    shift = np.zeros(curve.shape, np.float32)
    shift[frame, pitch] = moved
    return is_peak, shift


def _next(where: np.ndarray) -> np.ndarray:
    """For each frame the first one from there on where it holds, T if none: (T + 1, P)."""
    count = len(where)
    frames = np.where(where, np.arange(count)[:, None], count)
    after = np.minimum.accumulate(frames[::-1], axis=0)[::-1]
    return np.concatenate([after, np.full((1, where.shape[1]), count)])


def _notes(
    some: Mapping[str, np.ndarray],
    onset_threshold: float,
    offset_threshold: float,
    frame_threshold: float,
    config: Kong2021Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Onset and offset in frames, pitch index and strength of each note."""
    is_onset, onset_shift = peaks(some["onset"], onset_threshold, ONSET_NEIGHBOURS)
    is_offset, offset_shift = peaks(some["offset"], offset_threshold, OFFSET_NEIGHBOURS)
    count = len(is_onset)
    start, pitch = np.nonzero(is_onset)
    longest = round(LONGEST_S * config.frames_per_s)
    again = _next(is_onset)[start + 1, pitch]
    gone = _next(~(some["frame"] > frame_threshold))[start + 1, pitch]
    off = _next(is_offset)[start + 1, pitch]
    limit = np.minimum(start + longest, count - 1)
    # The offset counts if it is heard by the time the frames are gone, and nearer to that.
    at_gone = np.where((off <= gone) & (off - start > gone - off), off, gone)
    stop = np.where(gone <= limit, at_gone, limit)
    stop = np.where((again <= gone) & (again <= limit), again, stop)
    velocity = np.asarray(some["velocity"])[start, pitch].astype(np.float64)
    return start + onset_shift[start, pitch], stop + offset_shift[stop, pitch], pitch, velocity


def _pedal(
    activations: Mapping[str, np.ndarray], offset_threshold: float, config: Kong2021Config
) -> Pedal | None:
    """The pedal's movements, if it was heard at all."""
    if "pedal_frame" not in activations:
        return None
    down, up = _presses(activations, offset_threshold, config)
    return Pedal.from_arrays(
        np.concatenate([down, up]) / config.frames_per_s,
        np.concatenate([np.full(len(down), 127), np.zeros(len(up), np.int64)]),
    )


def _presses(
    activations: Mapping[str, np.ndarray], offset_threshold: float, config: Kong2021Config
) -> tuple[np.ndarray, np.ndarray]:
    """When the pedal goes down and up, in frames; one that is down at the end is left out."""
    curve = np.asarray(activations["pedal_frame"])[:, 0]
    is_offset, shift = peaks(activations["pedal_offset"], offset_threshold, OFFSET_NEIGHBOURS)
    held = curve >= config.pedal_frame_threshold
    rises = 1 + np.flatnonzero(held[1:] & (curve[1:] > curve[:-1]))
    offsets = np.flatnonzero(is_offset[:, 0])
    quiet = np.flatnonzero(curve <= config.pedal_frame_threshold)
    count, at = len(curve), 0
    down: list[float] = []
    up: list[float] = []
    while True:
        place = np.searchsorted(rises, at)
        if place == len(rises):
            return np.array(down, np.float64), np.array(up, np.float64)
        start = rises[place]
        gone = _first_after(quiet, start, count)
        off = _first_after(offsets, start, count)
        if off <= gone + PEDAL_PATIENCE and off < count:
            stop, at = off, off + 1
        elif gone + PEDAL_PATIENCE < count:
            stop, at = gone, gone + PEDAL_PATIENCE + 1
        else:
            return np.array(down, np.float64), np.array(up, np.float64)
        down.append(float(start))
        up.append(float(stop + shift[stop, 0]))


def _first_after(frames: np.ndarray, frame: int, count: int) -> int:
    place = np.searchsorted(frames, frame, side="right")
    return int(frames[place]) if place < len(frames) else count
