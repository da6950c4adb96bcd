"""What happens to a piano between its strings and a file: tuning, room, microphone, tape, noise.

All in NumPy on the host, one clip at a time, deterministic from the generator: a 10 s clip costs
a few tens of milliseconds, less than training on it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from musicjax.notes import Notes


@dataclass(frozen=True)
class AugmentConfig:
    """Chances are in 0..1, ranges are (low, high). `strength` 0 switches everything off."""

    strength: float = 1.0  # multiplies every chance
    tuning_cents: float = 15.0  # standard deviation of the whole recording's tuning
    room_chance: float = 0.8
    reverb_time_s: tuple[float, float] = (0.1, 2.2)  # to -60 dB, log-uniform
    direct_to_reverb_db: tuple[float, float] = (-6.0, 18.0)
    eq_chance: float = 0.8
    eq_db: float = 6.0  # standard deviation of each of 8 bands over the octaves
    band_limit_chance: float = 0.15  # old or cheap microphones: high- and low-pass
    drive_chance: float = 0.15  # tape-like saturation
    compress_chance: float = 0.2
    noise_chance: float = 0.7
    noise_db: tuple[float, float] = (15.0, 65.0)  # signal-to-noise ratio
    level_db: tuple[float, float] = (-36.0, 0.0)  # peak level
    jitter_s: float = 0.0  # standard deviation of a shift of the labels


def augment(
    samples: Float32[np.ndarray, " N"],
    notes: Notes,
    sample_rate: int,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> tuple[Float32[np.ndarray, " N"], Notes]:
    """Another recording of the same performance.

    Args:
      samples: (N,) mono.
      notes: with times relative to the first sample; retuning stretches them with the audio.
      sample_rate: Hz.
      rng: source of every draw.
      config: how much of what.

    Returns:
      samples (N,) of the same length, peak at most 1, and the notes that sound in them.
    """
    length = len(samples)

    def chance(p: float) -> bool:
        return bool(rng.random() < p * config.strength)

    if config.tuning_cents * config.strength > 0:
        cents = np.clip(rng.normal(0, config.tuning_cents * config.strength), -60, 60)
        samples, notes = _retune(samples, notes, cents)
    if config.jitter_s * config.strength > 0:
        notes = notes.shift(rng.normal(0, config.jitter_s * config.strength))
    samples = np.asarray(samples, np.float32)
    if chance(config.drive_chance):
        samples = _saturate(samples, rng)
    if chance(config.room_chance):
        samples = convolve(samples, room_response(sample_rate, rng, config))
    gain_curves = []
    if chance(config.eq_chance):
        gain_curves.append(_equaliser(rng, config.eq_db))
    if chance(config.band_limit_chance):
        gain_curves.append(_band_limit(rng))
    if gain_curves:
        samples = _filter(samples, sample_rate, gain_curves)
    if chance(config.compress_chance):
        samples = _compress(samples, sample_rate, rng)
    if chance(config.noise_chance):
        samples = samples + _noise(samples, sample_rate, rng, config.noise_db)
    samples = _fit(samples, length)
    if config.strength > 0:
        peak = float(np.abs(samples).max())
        level = 10 ** (rng.uniform(*config.level_db) / 20)
        samples = samples * np.float32(level / max(peak, 1e-4))
    return samples.astype(np.float32), notes


def _retune(samples: np.ndarray, notes: Notes, cents: float) -> tuple[np.ndarray, Notes]:
    """Play the recording faster or slower: pitch and time move together, as on tape."""
    ratio = 2 ** (cents / 1200)
    positions = np.arange(int(len(samples) / ratio)) * ratio
    # Cubic interpolation (Catmull-Rom): -60 dB of error where music is, and ten times faster than
    # a windowed sinc.
    left = np.minimum(positions.astype(np.int64), len(samples) - 1)
    t = (positions - left).astype(np.float32)
    padded = np.pad(samples, (1, 3))
    a, b, c, d = (padded[left + k] for k in range(4))
    out = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return out.astype(np.float32), notes.stretch(1 / ratio)


def _saturate(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drive = 10 ** (rng.uniform(-6, 12) / 20) / (np.abs(samples).max() + 1e-6)
    return np.tanh(samples * drive).astype(np.float32) / np.float32(drive)


def room_response(
    sample_rate: int, rng: np.random.Generator, config: AugmentConfig
) -> Float32[np.ndarray, " N"]:
    """A simulated room: direct sound, a few early reflections, and noise that decays faster the
    higher its frequency. The direct sound stays at sample 0, so onsets do not move."""
    low, high = np.log(config.reverb_time_s)
    t60 = float(np.exp(rng.uniform(low, high)))
    length = int(min(t60, 2.0) * sample_rate)
    time = np.arange(length, dtype=np.float32) / sample_rate
    tail = np.zeros(length, np.float32)
    damping = rng.uniform(0.3, 1.0)  # how much shorter the top octave decays
    edges = (0.0, 250.0, 1000.0, 4000.0, sample_rate / 2)
    spectrum = np.fft.rfft(rng.standard_normal(length).astype(np.float32))
    hz = np.fft.rfftfreq(length, 1 / sample_rate)
    for band in range(len(edges) - 1):
        inside = (hz >= edges[band]) & (hz < edges[band + 1])
        decay = t60 * damping ** (band / 2) * np.exp(rng.normal(0, 0.15))
        tail += np.fft.irfft(spectrum * inside, length) * np.exp(-6.91 * time / decay)
    predelay = int(rng.uniform(0.0, 0.03) * sample_rate)
    tail = np.pad(tail, (predelay, 0))[:length]
    ratio = 10 ** (-rng.uniform(*config.direct_to_reverb_db) / 10)
    tail *= np.sqrt(ratio / (np.sum(tail**2) + 1e-9))
    tail[0] += 1.0
    reflections = rng.integers(0, 8)
    at = (rng.uniform(0.001, 0.05, reflections) * sample_rate).astype(int)
    at = at[at < length]
    tail[at] += rng.normal(0, 0.3, len(at)).astype(np.float32)
    return tail


def convolve(
    samples: Float32[np.ndarray, " N"], response: Float32[np.ndarray, " M"]
) -> Float32[np.ndarray, " N"]:
    """Linear convolution by FFT, cut to the length of the samples."""
    size = _fast_length(len(samples) + len(response))
    product = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(samples)].astype(np.float32)


def _fast_length(length: int) -> int:
    """The next length of the form 2^a 3^b 5^c, for which the FFT is fast."""
    best = 1 << (length - 1).bit_length()
    for odd in (1, 3, 5, 9, 15, 25, 27, 45):
        size = odd << max((-(-length // odd) - 1).bit_length(), 0)
        if length <= size < best:
            best = size
    return best


def _equaliser(rng: np.random.Generator, deviation_db: float):
    """A smooth random colour: one gain an octave from 30 Hz, and a tilt."""
    centres = np.log(30.0 * 2.0 ** np.arange(10))
    gains = rng.normal(0, deviation_db * rng.uniform(0.2, 1), 10)
    gains += rng.normal(0, 1.0) * (np.arange(10) - 5)
    return lambda hz: 10 ** (np.interp(np.log(np.maximum(hz, 1.0)), centres, gains) / 20)


def _band_limit(rng: np.random.Generator):
    """What a small loudspeaker, a telephone or an old disc leaves over."""
    low = np.exp(rng.uniform(np.log(30.0), np.log(300.0)))
    high = np.exp(rng.uniform(np.log(2500.0), np.log(8000.0)))
    order = rng.uniform(1, 4)
    return lambda hz: (
        (1 + (low / np.maximum(hz, 1.0)) ** 2) ** (-order / 2)
        * (1 + (hz / high) ** 4) ** (-order / 4)
    )


def _filter(samples: np.ndarray, sample_rate: int, gain_curves: list) -> np.ndarray:
    size = _fast_length(len(samples))
    spectrum = np.fft.rfft(samples, size)
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    for curve in gain_curves:
        spectrum = spectrum * curve(hz)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def _compress(samples: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Automatic gain: loud passages come down by up to the ratio, over 50 ms windows."""
    window = sample_rate // 20
    blocks = -(-len(samples) // window)
    padded = _fit(samples, blocks * window).reshape(blocks, window)
    level = np.sqrt((padded**2).mean(axis=1) + 1e-10)
    threshold = np.quantile(level, rng.uniform(0.2, 0.7)) + 1e-6
    ratio = rng.uniform(1.5, 6.0)
    gain = np.minimum(1.0, (level / threshold) ** (1 / ratio - 1))
    smooth = np.convolve(np.pad(gain, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    centres = (np.arange(blocks) + 0.5) * window
    return samples * np.interp(np.arange(len(samples)), centres, smooth).astype(np.float32)


def _noise(
    samples: np.ndarray, sample_rate: int, rng: np.random.Generator, range_db: tuple[float, float]
) -> np.ndarray:
    """Noise between white and brown, with mains hum now and then."""
    size = _fast_length(len(samples))
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    shape = np.maximum(hz, 20.0) ** (-rng.uniform(0.0, 1.0))
    white = rng.standard_normal(size).astype(np.float32)
    noise = np.fft.irfft(np.fft.rfft(white) * shape, size)[: len(samples)].astype(np.float32)
    if rng.random() < 0.15:
        hum = rng.choice([50.0, 60.0]) * 2 * np.pi * np.arange(len(samples)) / sample_rate
        noise += noise.std() * rng.uniform(0.3, 2.0) * np.sin(hum + 0.7 * np.sin(hum))
    power = float(np.mean(samples**2)) + 1e-8
    wanted = power / 10 ** (rng.uniform(*range_db) / 10)
    return (noise * np.sqrt(wanted / (float(np.mean(noise**2)) + 1e-12))).astype(np.float32)


def _fit(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples, (0, max(0, length - len(samples))))[:length]
