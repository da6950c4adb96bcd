"""Notes to training labels, by the rules of the PyTorch port and of Magenta. NumPy only."""

from typing import Any

import numpy as np

from musicjax.audio.frontend import num_frames
from musicjax.models.onsets_frames.model import OnsetsFramesConfig
from musicjax.notes import Notes


def targets(
    notes: Notes, start_s: float, num_samples: int, config: OnsetsFramesConfig
) -> dict[str, np.ndarray]:
    """Labels (T, P) of the clip that starts at `start_s` and has `num_samples` samples.

    The sustain pedal is applied first (`notes.sustained()`). onset, offset and frame are uint8
    0/1; velocity is float32, 0..1, given where a note sounds. With `frame_weight`, the weights of
    the frame loss come too. Conventions: `labels="frame"` is the PyTorch port's (an onset is the
    nearest frame; of two notes that meet in a cell the later one wins; velocity / 128);
    `labels="32ms"` is Magenta's (every frame touched by the first 32 ms; velocity / the largest).
    """
    frontend = config.frontend
    count = num_frames(num_samples, frontend)
    notes = notes.sustained().sorted()
    pitch = np.asarray(notes.pitch, np.int64) - config.min_pitch
    on = (np.asarray(notes.onset_s) - start_s) * frontend.sample_rate / frontend.hop_length
    off = (np.asarray(notes.offset_s) - start_s) * frontend.sample_rate / frontend.hop_length
    velocity = np.asarray(notes.velocity, np.float32)
    in_reach = (pitch >= 0) & (pitch < config.num_pitches) & (off > -2) & (on < count + 1)
    largest = max(float(velocity.max(initial=0)), 1.0)
    pitch, on, off, velocity = pitch[in_reach], on[in_reach], off[in_reach], velocity[in_reach]
    shape = (count, config.num_pitches)
    if config.labels == "frame":
        return _labels_of_port(shape, pitch, on, off, velocity / 128)
    frames_32ms = 0.032 * frontend.sample_rate / frontend.hop_length
    return _labels_of_magenta(
        shape, pitch, on, off, velocity / largest, frames_32ms, config.frame_weight
    )


def _fill(
    roll: np.ndarray, pitch: np.ndarray, start: np.ndarray, stop: np.ndarray, value: Any
) -> None:
    """roll[start:stop, pitch] = value for every note in turn, clipped to the roll, in one write.

    value is a scalar or one per note. Where notes overlap the last one stays.
    """
    start, stop = np.clip(start, 0, len(roll)), np.clip(stop, 0, len(roll))
    lengths = np.maximum(stop - start, 0)
    first = np.repeat(start - np.cumsum(lengths) + lengths, lengths)
    rows = first + np.arange(lengths.sum())
    values = np.repeat(value, lengths) if np.ndim(value) else value
    roll[rows, np.repeat(pitch, lengths)] = values


def _labels_of_port(
    shape: tuple[int, int],
    pitch: np.ndarray,
    on: np.ndarray,
    off: np.ndarray,
    velocity: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each note writes onset, sustain, offset in turn over what earlier notes wrote."""
    left, right = np.rint(on).astype(int), np.rint(off).astype(int)
    pieces = [(left, left + 1, 3), (left + 1, right, 2), (right, right + 1, 1)]
    starts, stops = (np.stack([p[i] for p in pieces], axis=1).ravel() for i in (0, 1))
    codes = np.tile([piece[2] for piece in pieces], len(pitch))
    state = np.zeros(shape, np.uint8)
    _fill(state, np.repeat(pitch, 3), starts, stops, codes)
    strength = np.zeros(shape, np.float32)
    _fill(strength, pitch, left, np.maximum(right, left + 1), velocity)
    return {
        "onset": (state == 3).astype(np.uint8),
        "offset": (state == 1).astype(np.uint8),
        "frame": (state > 1).astype(np.uint8),
        "velocity": strength,
    }


def _labels_of_magenta(
    shape: tuple[int, int],
    pitch: np.ndarray,
    on: np.ndarray,
    off: np.ndarray,
    velocity: np.ndarray,
    length: float,
    frame_weight: float,
) -> dict[str, np.ndarray]:
    """Every frame that an interval touches is labelled; an interval touches at least one."""

    def touched(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = np.floor(start).astype(int)
        return first, np.maximum(first + 1, np.ceil(stop).astype(int))

    def roll(interval: tuple[np.ndarray, np.ndarray], value: Any, dtype: type) -> np.ndarray:
        out: np.ndarray = np.zeros(shape, dtype)
        _fill(out, pitch, *interval, value)
        return out

    onset, sounding = touched(on, np.minimum(off, on + length)), touched(on, off)
    labels = {
        "onset": roll(onset, 1, np.uint8),
        "offset": roll(touched(off, off + length), 1, np.uint8),
        "frame": roll(sounding, 1, np.uint8),
        "velocity": roll(sounding, velocity, np.float32),
    }
    if frame_weight != 1:
        end_of_onset = roll(sounding, onset[1].astype(np.float32), np.float32)
        since = np.arange(1, shape[0] + 1)[:, None] - end_of_onset
        weight = np.where(since > 0, frame_weight / np.maximum(since, 1), frame_weight)
        labels["frame_weight"] = np.where(labels["frame"] > 0, weight, 1).astype(np.float32)
    return labels
