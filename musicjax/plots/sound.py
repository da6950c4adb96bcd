"""Sound on the axis of pitches, so that harmonics line up with notes."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from musicjax.audio.io import Audio
from musicjax.errors import DataError


@dataclass(frozen=True)
class PitchLevels:
    """Levels (T, bins) from pitch `low` up, `per_semitone` bins each, at `frames_per_s`."""

    levels: np.ndarray
    low: int
    per_semitone: int
    frames_per_s: float

    @property
    def duration_s(self) -> float:
        return len(self.levels) / self.frames_per_s


def pitch_spectrogram(
    samples: Float[np.ndarray, " N"],
    sample_rate: int,
    *,
    frames_per_s: float = 50.0,
    low: int = 21,
    high: int = 108,
    per_semitone: int = 4,
) -> Float[np.ndarray, "T bins"]:
    """Levels in dB, 0 the loudest, with log frequency on the axis of MIDI pitches.

    Bin b is at pitch low + (b + 0.5) / per_semitone - 0.5. Bass is seen through long windows
    and treble through short ones, blended over an octave, because a bass note needs a quarter of a
    second to be told from its neighbour and a treble note is over by then. Silence is -120 dB.
    """
    num_bins = (high - low + 1) * per_semitone
    pitches = low + (np.arange(num_bins) + 0.5) / per_semitone - 0.5
    frequencies = 440.0 * 2.0 ** ((pitches - 69) / 12)
    num_frames = max(1, math.ceil(len(samples) / sample_rate * frames_per_s))
    power = np.zeros((num_frames, num_bins), dtype=np.float32)
    edges = (54.0, 72.0)  # where one window hands over to the next
    rising = [np.clip((pitches - edge) / 12 + 0.5, 0, 1) for edge in edges]
    weights = (1 - rising[0], rising[0] * (1 - rising[1]), rising[0] * rising[1])
    for window_s, weight in zip((0.256, 0.128, 0.064), weights, strict=True):
        used = np.flatnonzero((weight > 0) & (frequencies < sample_rate / 2))
        if not len(used):
            continue
        width = round(window_s * sample_rate)
        fft_length = 2 ** math.ceil(math.log2(2 * width))
        window = np.hanning(width).astype(np.float32)
        window /= window.sum()
        starts = np.round(np.arange(num_frames) * sample_rate / frames_per_s).astype(np.int64)
        place = frequencies[used] * fft_length / sample_rate
        below = np.minimum(place.astype(np.int64), fft_length // 2 - 1)
        part = (place - below).astype(np.float32)
        for first in range(0, num_frames, 256):  # blocks, so that an hour fits in memory
            cuts = _cuts(samples, starts[first : first + 256] - width // 2, width)
            magnitude = np.abs(np.fft.rfft(cuts * window, fft_length, axis=1))
            seen = magnitude[:, below] * (1 - part) + magnitude[:, below + 1] * part
            power[first : first + 256, used] += weight[used] * seen**2
    peak = float(power.max())
    if not peak > 0:
        return np.full_like(power, -120)
    power /= peak
    np.maximum(power, 1e-12, out=power)
    np.log10(power, out=power)
    power *= 10
    return power


def _cuts(samples: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """Pieces (n, width) of the samples, float32; zeros where there are none."""
    index = starts[:, None] + np.arange(width)
    missing = (index < 0) | (index >= len(samples))
    if missing.all():
        return np.zeros(index.shape, np.float32)
    return np.where(missing, 0, samples[np.clip(index, 0, len(samples) - 1)]).astype(np.float32)


def pitch_levels(
    audio: Audio | None,
    spectrogram: np.ndarray | None,
    frequencies_hz: np.ndarray | None,
    frames_per_s: float | None,
) -> PitchLevels | None:
    if spectrogram is not None:
        if frequencies_hz is None or frames_per_s is None:
            raise DataError("A spectrogram needs frequencies_hz of its columns and frames_per_s.")
        if len(frequencies_hz) != spectrogram.shape[1]:
            raise DataError(
                f"The spectrogram has {spectrogram.shape[1]} columns but there are "
                f"{len(frequencies_hz)} frequencies_hz; they go together."
            )
        pitches = 69 + 12 * np.log2(np.maximum(frequencies_hz, 1.0) / 440)
        grid = 0.25 * (np.arange(128 * 4) + 0.5) - 0.5
        right = np.clip(np.searchsorted(pitches, grid), 1, len(pitches) - 1)
        part = np.clip((grid - pitches[right - 1]) / np.diff(pitches)[right - 1], 0, 1)
        levels = spectrogram[:, right - 1] * (1 - part) + spectrogram[:, right] * part
        return PitchLevels(levels, 0, 4, frames_per_s)
    if audio is None or not audio.samples.size:
        return None
    samples = audio.samples if audio.samples.ndim == 1 else audio.samples.mean(axis=0)
    rate = 50.0 if audio.duration_s < 1200 else 20.0
    levels = pitch_spectrogram(samples, audio.sample_rate, frames_per_s=rate)
    # Music falls off towards the treble: lift it, so that upper harmonics can be seen.
    levels += np.linspace(0, 16, levels.shape[1], dtype=np.float32)
    return PitchLevels(levels, 21, 4, rate)
