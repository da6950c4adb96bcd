"""What is heard while it sounds: notes that begin and end, and the pitch of a voice."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from musicjax.notes.notes import Notes

RELEASE_VELOCITY = 64  # MIDI's, where a keyboard does not tell how fast the key came up


@dataclass(frozen=True)
class NoteOn:
    """A note begins at `time_s` seconds of the stream. MIDI pitch 0..127, velocity 1..127."""

    time_s: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class NoteOff:
    """The note of that MIDI pitch that sounds ends at `time_s`; velocity is that of the release."""

    time_s: float
    pitch: int
    velocity: int = RELEASE_VELOCITY


@dataclass(frozen=True)
class PitchFrame:
    """The pitch of one voice at `time_s`: its frequency in Hz and how sure that is, 0..1."""

    time_s: float
    f0_hz: float
    confidence: float


Event = NoteOn | NoteOff | PitchFrame


def events_to_notes(events: Iterable[Event], end_s: float | None = None) -> Notes:
    """Notes from the events of a stream, in the order in which they came.

    A second NoteOn of a pitch that sounds ends the first note. What still sounds ends at `end_s`,
    or at the last event if None. A NoteOff of a pitch that does not sound, and pitch frames, are
    passed over. Notes are in order of onset, then pitch.
    """
    sounding: dict[int, NoteOn] = {}
    found: list[tuple[NoteOn, float]] = []
    last_s = 0.0
    for event in events:
        last_s = max(last_s, event.time_s)
        if isinstance(event, PitchFrame):
            continue
        begun = sounding.pop(event.pitch, None)
        if begun is not None:
            found.append((begun, event.time_s))
        if isinstance(event, NoteOn):
            sounding[event.pitch] = event
    end_s = last_s if end_s is None else end_s
    found += [(begun, max(end_s, begun.time_s)) for begun in sounding.values()]
    found.sort(key=lambda pair: (pair[0].time_s, pair[0].pitch))
    return Notes.from_arrays(
        onset_s=np.array([begun.time_s for begun, _ in found]),
        offset_s=np.array([off_s for _, off_s in found]),
        pitch=np.array([begun.pitch for begun, _ in found], np.int64),
        velocity=np.array([begun.velocity for begun, _ in found], np.int64),
    )
