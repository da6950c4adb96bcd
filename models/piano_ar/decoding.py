"""From the states of keys to notes: of a whole recording, or frame after frame as they come."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from musicjax.audio.framing import StreamSpec
from musicjax.errors import ConfigError
from musicjax.models.piano_ar.config import PianoARConfig
from musicjax.models.piano_ar.states import begins, weights
from musicjax.notes import Event, NoteOff, NoteOn, Notes, PieceDecoder

_NO_VELOCITY = 64  # of forms that do not tell it


def chosen(state: np.ndarray, config: PianoARConfig) -> np.ndarray:
    """The code (T, P) of each cell, from probabilities (T, P, C), as the network chose it."""
    factors = weights(config.states, config.onset_boost)
    return np.argmax(np.asarray(state, np.float32) * factors, axis=-1)


def decode(
    activations: Mapping[str, np.ndarray], config: PianoARConfig, *, min_duration_s: float = 0.0
) -> Notes:
    """Notes from activations: `state` (T, P, C), and `velocity` (T, P) if there.

    A note begins where a key is said to be in onset or re-onset and was not in the frame before,
    and lasts until it is off or in offset, or until its next onset. Sustain without an onset is no
    note. Velocity is that of the frame in which it begins; 64 where the form tells none. Notes
    shorter than `min_duration_s` are left out.
    """
    codes = chosen(activations["state"], config)
    count, pitches = codes.shape
    rise, sounds = begins(codes, np.zeros(pitches, np.int64), config.states)
    # next_end[t]: the first frame >= t that ends a note; a note that starts at t asks t + 1.
    steps = np.where(rise | ~sounds, np.arange(count)[:, None], count)
    next_end = np.minimum.accumulate(steps[::-1], axis=0)[::-1]
    next_end = np.concatenate([next_end, np.full((1, pitches), count)])
    start, pitch = np.nonzero(rise)
    stop = next_end[start + 1, pitch]
    hop, rate = config.frontend.hop_length, config.frontend.sample_rate
    midi = np.full(len(start), _NO_VELOCITY)
    if "velocity" in activations:
        midi = midi_velocity(np.asarray(activations["velocity"])[start, pitch])
    keep = (stop - start) * hop / rate >= min_duration_s
    return Notes.from_arrays(
        onset_s=start[keep] * hop / rate,
        offset_s=stop[keep] * hop / rate,
        pitch=pitch[keep] + config.min_pitch,
        velocity=midi[keep],
    )


def decoder(config: PianoARConfig, *, min_duration_s: float = 0.0) -> PieceDecoder:
    """Decodes a long recording while it is heard, as `decode` does."""
    frames_per_s = config.frontend.sample_rate / config.frontend.hop_length
    return PieceDecoder(partial(decode, config=config), frames_per_s, min_duration_s=min_duration_s)


def midi_velocity(strength: np.ndarray) -> np.ndarray:
    """MIDI velocity 1..127 of a strength 0..1; half precision, in which recordings are kept."""
    half = np.asarray(strength, np.float16).astype(np.float64)
    return np.clip(np.rint(128 * half), 1, 127).astype(np.int64)


class Reader:
    """The notes of a stream: what `decode` would write, each event in the frame where it is."""

    def __init__(self, config: PianoARConfig, spec: StreamSpec) -> None:
        self.config, self.spec = config, spec
        self._before = np.zeros(config.num_pitches, np.int64)
        self._on = np.zeros(config.num_pitches, bool)

    def read(self, activations: Mapping[str, np.ndarray], first_frame: int) -> list[Event]:
        """Events of the frames, ends before beginnings."""
        codes = chosen(activations["state"], self.config)
        velocity = activations.get("velocity")
        rises, sounds = begins(codes, self._before, self.config.states)
        self._before = codes[-1]
        events: list[Event] = []
        for t, (rise, sounding) in enumerate(zip(rises, sounds, strict=True)):
            time_s = self.spec.time_s(first_frame + t)
            ended = self._on & (rise | ~sounding)
            events += [NoteOff(time_s, self._key(p)) for p in np.flatnonzero(ended)]
            keys = np.flatnonzero(rise)
            told = np.full(len(keys), _NO_VELOCITY)
            if velocity is not None:
                told = midi_velocity(velocity[t, keys])
            for p, v in zip(keys, told.tolist(), strict=True):
                events.append(NoteOn(time_s, self._key(p), v))
            self._on = (self._on & ~ended) | rise
        return events

    def end(self, frame: int) -> list[Event]:
        """What still sounds ends here."""
        on, self._on = self._on, np.zeros_like(self._on)
        return [NoteOff(self.spec.time_s(frame), self._key(p)) for p in np.flatnonzero(on)]

    def _key(self, pitch: np.integer) -> int:
        return int(pitch) + self.config.min_pitch


def reader(config: PianoARConfig, spec: StreamSpec, **options: object) -> Reader:
    """A reader for one stream. Raises ConfigError for options: a note that is told cannot be
    taken back when it turns out short."""
    if options:
        raise ConfigError(f"piano_ar decodes a stream without options; leave out {[*options]}.")
    return Reader(config, spec)
