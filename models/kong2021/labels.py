"""Notes and pedal to the regressed labels: times between frames, seen from all frames near them."""

import numpy as np

from musicjax.audio.frontend import num_frames
from musicjax.models.kong2021.model import Kong2021Config
from musicjax.notes import Notes
from musicjax.notes.notes import PEDAL_DOWN, SUSTAIN


def targets(
    notes: Notes, start_s: float, num_samples: int, config: Kong2021Config
) -> dict[str, np.ndarray]:
    """Labels of the clip that starts at `start_s` and has `num_samples` samples.

    onset, offset (T, P) float32: 1 at the exact time, falling linearly to 0 over `reach_s` to both
    sides, the nearest event counts (equation 3). frame, struck (T, P) uint8: from the nearest frame
    of the onset to that of the offset; the nearest frame of the onset alone. velocity (T, P)
    float32: MIDI velocity / 128 where struck. known (T, P) uint8: 0 where a note sounds that began
    before the clip or ends after it. pedal_onset, pedal_offset float32 and pedal_frame uint8
    (T, 1), the same of the sustain pedal. Offsets are those that are heard: the pedal is applied
    first, so hand in notes with their pedal (`pedal_extended=False` in the recipe's data).
    """
    count, fps = num_frames(num_samples, config.frontend), config.frames_per_s
    down_s, up_s = pedal_intervals(notes)
    heard = notes.sustained()
    pitch = np.asarray(heard.pitch, np.int64) - config.min_pitch
    on, off = heard.onset_s - start_s, heard.offset_s - start_s
    end = (count - 1) / fps
    near = (pitch >= 0) & (pitch < config.num_pitches) & ~heard.is_drum & (off >= 0) & (on <= end)
    pitch, on, off, velocity = pitch[near], on[near], off[near], heard.velocity[near]
    shape = (count, config.num_pitches)
    first, last = (np.rint(times * fps).astype(np.int64) for times in (on, np.minimum(off, end)))
    begins, ends = on >= 0, off <= end

    known = np.ones(shape, np.uint8)
    frame = np.zeros(shape, np.uint8)
    _fill(frame, np.maximum(first, 0), last, pitch, 1)
    _fill(known, np.zeros_like(first)[~begins], last[~begins], pitch[~begins], 0)
    to_end = np.full_like(first, count - 1)
    _fill(known, np.maximum(first, 0)[~ends], to_end[~ends], pitch[~ends], 0)
    struck, strength = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    struck[first[begins], pitch[begins]] = 1
    strength[first[begins], pitch[begins]] = velocity[begins] / np.float32(128)
    rolls = {
        "onset": _regressed(on[begins], pitch[begins], shape, config),
        "offset": _regressed(off[ends], pitch[ends], shape, config),
        "frame": frame,
        "struck": struck,
        "velocity": strength,
        "known": known,
    }
    return rolls | _pedal_rolls(down_s - start_s, up_s - start_s, count, config)


def pedal_intervals(notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """When the sustain pedal goes down and when up again, in seconds; infinity if it never does."""
    if notes.pedal is None:
        return np.zeros(0), np.zeros(0)
    moves = notes.pedal[notes.pedal.number == SUSTAIN]
    down = moves.value >= PEDAL_DOWN
    before = np.concatenate([[False], down[:-1]])
    down_s, up_s = moves.time_s[down & ~before], moves.time_s[~down & before]
    return down_s, np.append(up_s, np.inf)[: len(down_s)]


def _fill(
    roll: np.ndarray, first: np.ndarray, last: np.ndarray, pitch: np.ndarray, value: int
) -> None:
    """roll[first:last + 1, pitch] = value for every note."""
    length = np.maximum(last + 1 - first, 0)
    skipped = np.repeat(first - np.cumsum(length) + length, length)
    roll[skipped + np.arange(length.sum()), np.repeat(pitch, length)] = value


def _regressed(
    time_s: np.ndarray, pitch: np.ndarray, shape: tuple[int, int], config: Kong2021Config
) -> np.ndarray:
    """How near the nearest event is, 1 at it and 0 from `reach_s` on, for every frame. float32."""
    fps = config.frames_per_s
    reach = int(np.ceil(config.reach_s * fps))
    frame = np.rint(time_s * fps).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    value = 1 - np.abs(frame / fps - time_s[:, None]) / config.reach_s
    roll = np.zeros(shape, np.float32)
    there = (frame >= 0) & (frame < shape[0]) & (value > 0)
    columns = np.broadcast_to(pitch[:, None], frame.shape)
    np.maximum.at(roll, (frame[there], columns[there]), value[there].astype(np.float32))
    return roll


def _pedal_rolls(
    down_s: np.ndarray, up_s: np.ndarray, count: int, config: Kong2021Config
) -> dict[str, np.ndarray]:
    fps = config.frames_per_s
    end = (count - 1) / fps
    near = (up_s >= 0) & (down_s <= end)
    down_s, up_s = down_s[near], up_s[near]
    key = np.zeros(len(down_s), np.int64)
    frame = np.zeros((count, 1), np.uint8)
    first = np.maximum(np.rint(down_s * fps).astype(np.int64), 0)
    _fill(frame, first, np.rint(np.minimum(up_s, end) * fps).astype(np.int64), key, 1)
    begins, ends = down_s >= 0, up_s <= end
    return {
        "pedal_onset": _regressed(down_s[begins], key[begins], (count, 1), config),
        "pedal_offset": _regressed(up_s[ends], key[ends], (count, 1), config),
        "pedal_frame": frame,
    }
