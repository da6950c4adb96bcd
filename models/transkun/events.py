"""From the intervals of overlapping segments to the notes and pedals of a recording. NumPy only.

An interval that reaches out of a segment is cut at its border, and the network tells from the
sound whether an event begins or ends there. Cut events are joined with those of the next segment,
as in the authors' package.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from musicjax.decode.semicrf import follow
from musicjax.models.transkun.config import TranskunConfig
from musicjax.notes import Notes, Pedal

_SHORTEST_S = 1e-8  # of an event inside a segment


class Intervals(NamedTuple):
    """Intervals of one segment: symbol index, first and last frame, K each."""

    symbol: Int[np.ndarray, "K"]
    start: Int[np.ndarray, "K"]
    end: Int[np.ndarray, "K"]


class EventReader:
    """Follows the segments of one recording, which must come in order.

    Each segment is read from where the last event of each symbol ended in the one before: what
    was decided with a whole segment of sound around it is not decided again at a border.
    """

    def __init__(self, config: TranskunConfig, samples: int, hop: int, lead: int) -> None:
        frame = config.frontend.hop_length
        self._numbers = np.asarray(config.symbol_numbers, np.int16)
        self._frame_s = frame / config.frontend.sample_rate
        self._last_frame = round(samples / frame)
        self._hop_frames = hop // frame
        self._hop_s = hop / config.frontend.sample_rate
        self._begin_s = -(config.segment_s - config.segment_hop_s)
        self._segments = 0
        self._from = np.full(len(self._numbers), math.floor(lead / frame))

    def intervals(
        self, next_end: Int[np.ndarray, "S T"], single: Bool[np.ndarray, "S T"]
    ) -> Intervals:
        """The intervals of the next segment that are to be described."""
        paths = follow(next_end, single, self._from)
        rows = [(s, *pair) for s, path in enumerate(paths) for pair in path]
        columns = np.asarray(rows, np.int32).reshape(-1, 3).T
        return Intervals(*columns)

    def events(
        self,
        intervals: Intervals,
        velocity: Int[np.ndarray, "K"],
        shift: Float[np.ndarray, "K 2"],
        inside: Float[np.ndarray, "K 2"],
        sureness: Float[np.ndarray, "K"],
    ) -> dict[str, np.ndarray]:
        """The events of that segment, one array a property, in order of onset.

        number: MIDI pitch, or minus the controller number of a pedal. onset_s, offset_s: in the
        recording. has_onset, has_offset: whether it begins and ends inside the segment. sureness:
        probability of its velocity.
        """
        symbol, start, end = intervals
        has_onset = (start > 0) | (inside[:, 0] > 0)
        has_offset = (end < self._last_frame) | (inside[:, 1] > 0)
        shift = shift.astype(np.float64)
        onset_s = (start + shift[:, 0]) * self._frame_s
        offset_s = (end + shift[:, 1]) * self._frame_s
        ended = np.zeros(len(self._numbers))  # when the event before this one ended
        reached = np.zeros(len(self._numbers), int)  # frame of the last offset
        for k, s in enumerate(symbol.tolist()):
            onset_s[k] = max(onset_s[k], ended[s])
            ended[s] = offset_s[k] = max(offset_s[k], onset_s[k] + _SHORTEST_S)
            if has_offset[k]:
                reached[s] = end[k]
        number = self._numbers[symbol]
        order = np.lexsort((number, offset_s, onset_s))
        begin_s = self._begin_s + self._segments * self._hop_s
        onset_s = np.maximum(onset_s + begin_s, 0.0)
        self._from = np.maximum(reached - self._hop_frames, 0)
        self._segments += 1
        found = {
            "number": number,
            "onset_s": onset_s,
            "offset_s": np.maximum(offset_s + begin_s, onset_s),
            "velocity": velocity.astype(np.int16),
            "has_onset": has_onset,
            "has_offset": has_offset,
            "sureness": sureness,
        }
        return {name: column[order] for name, column in found.items()}


class _Event:
    """One event while its pieces are joined."""

    __slots__ = ("has_offset", "has_onset", "offset_s", "onset_s", "velocity")

    def __init__(
        self, onset_s: float, offset_s: float, velocity: int, has_onset: bool, has_offset: bool
    ) -> None:
        self.onset_s, self.offset_s, self.velocity = onset_s, offset_s, velocity
        self.has_onset, self.has_offset = has_onset, has_offset


def decode(
    activations: Mapping[str, np.ndarray],
    config: TranskunConfig,
    *,
    min_duration_s: float = 0.0,
) -> Notes:
    """Notes and pedal movements from the events of all segments of a recording.

    An event that begins before the last one of its symbol has ended is its continuation if it has
    no onset of its own, and replaces it if it has: the later segment hears more of it. Events
    whose end was never heard are left out, but for the last of each symbol. Notes last as long as
    their keys are held; `Notes.sustained` applies the pedal. Notes shorter than `min_duration_s`
    are left out.
    """
    del config
    tracks: dict[int, list[_Event]] = {}
    names = ("onset_s", "offset_s", "velocity", "has_onset", "has_offset")
    rows = zip(*(activations[name].tolist() for name in ("number", *names)), strict=True)
    for number, *row in rows:
        event, track = _Event(*row), tracks.setdefault(number, [])
        if track and event.onset_s < track[-1].offset_s:
            if event.has_onset:
                track[-1] = event
            else:
                track[-1].has_offset = event.has_offset
                track[-1].offset_s = max(event.offset_s, track[-1].offset_s)
        elif event.has_onset:
            track.append(event)
    whole = {number: _without_overlap(track) for number, track in tracks.items() if track}
    notes = [
        (e.onset_s, e.offset_s, number, e.velocity)
        for number, track in whole.items()
        if number >= 0
        for e in track
        if e.offset_s - e.onset_s >= min_duration_s
    ]
    onset_s, offset_s, pitch, velocity = np.asarray(sorted(notes), float).reshape(-1, 4).T
    # Velocity 0 would read as a note's end in a MIDI file.
    return Notes.from_arrays(onset_s, offset_s, pitch, np.maximum(velocity, 1), pedal=_pedal(whole))


def _without_overlap(track: list[_Event]) -> list[_Event]:
    """Events of one symbol whose end is known, each cut where the next begins; none is empty."""
    track[-1].has_offset = True
    track = sorted((e for e in track if e.has_offset), key=lambda e: (e.onset_s, e.offset_s))
    for event, following in pairwise(track):
        event.offset_s = min(event.offset_s, following.onset_s)
    return [e for e in track if e.onset_s < e.offset_s]


def _pedal(tracks: Mapping[int, list[_Event]]) -> Pedal | None:
    """Presses with their velocity as the controller's value, releases with 0."""
    moves = [
        move
        for number, track in tracks.items()
        if number < 0
        for e in track
        for move in ((e.onset_s, e.velocity, -number), (e.offset_s, 0, -number))
    ]
    if not moves:
        return None
    time_s, value, number = np.asarray(moves, float).T
    return Pedal.from_arrays(time_s, value, number)
