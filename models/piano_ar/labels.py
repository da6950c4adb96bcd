"""Notes to the states of keys, frame by frame. NumPy only."""

import numpy as np

from musicjax.audio.frontend import num_frames
from musicjax.models.piano_ar.config import PianoARConfig
from musicjax.models.piano_ar.states import write
from musicjax.notes import Notes


def targets(
    notes: Notes, start_s: float, num_samples: int, config: PianoARConfig
) -> dict[str, np.ndarray]:
    """Labels (T, P) of the clip that starts at `start_s` and has `num_samples` samples.

    state: uint8 codes of `config.states`, from the frame nearest to each onset to the one nearest
    to its offset (paper, section 3.1); the sustain pedal is applied first (`notes.sustained()`).
    velocity: float32, MIDI velocity / 128 in the frame of each onset, 0 elsewhere.
    """
    frontend = config.frontend
    count = num_frames(num_samples, frontend)
    notes = notes.sustained().sorted()
    pitch = np.asarray(notes.pitch, np.int64) - config.min_pitch
    rate = frontend.sample_rate / frontend.hop_length
    left = np.rint((np.asarray(notes.onset_s) - start_s) * rate).astype(np.int64)
    right = np.rint((np.asarray(notes.offset_s) - start_s) * rate).astype(np.int64)
    in_reach = (pitch >= 0) & (pitch < config.num_pitches) & (right >= 0) & (left < count)
    left, right, pitch = left[in_reach], right[in_reach], pitch[in_reach]
    shape = (count, config.num_pitches)
    velocity: np.ndarray = np.zeros(shape, np.float32)
    inside = left >= 0
    strength = np.asarray(notes.velocity, np.float32)[in_reach][inside] / 128
    velocity[left[inside], pitch[inside]] = np.maximum(strength, 1 / 128)
    return {"state": write(left, right, pitch, shape, config.states), "velocity": velocity}
