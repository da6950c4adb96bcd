"""Mel filterbanks, and their product with a spectrum.

Two mel scales are in use and two ways to draw a triangle, and each published system took one of
each. Matrices are (bins, filters), computed in float64 and kept as float32.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Slaney's Auditory Toolbox (1998): linear below 1 kHz, 27 steps per factor of 6.4 above.
_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: float | np.ndarray, scale: str = "htk") -> np.ndarray:
    """Mel of a frequency in Hz; scale "htk" (2595 log10(1 + f/700)) or "slaney"."""
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    above = np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return np.asarray(np.minimum(hz, _SLANEY_BREAK_HZ) / _SLANEY_HZ_PER_MEL + above)


def mel_to_hz(mel: float | np.ndarray, scale: str = "htk") -> np.ndarray:
    """Frequency in Hz of a mel value; the inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    knee = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
    above = np.exp(_SLANEY_LOG_STEP * np.maximum(mel - knee, 0.0))
    return np.asarray(np.minimum(mel, knee) * _SLANEY_HZ_PER_MEL * above)


@functools.lru_cache(maxsize=64)
def mel_bank(
    sample_rate: int,
    fft_length: int,
    num_bins: int,
    f_min_hz: float,
    f_max_hz: float,
    scale: str = "htk",
    norm: str = "slaney",
    shape: str = "hz",
) -> Float[np.ndarray, "bins F"]:
    """Triangular filters whose corners are evenly spaced in mel.

    Filter m rises from corner m to m + 1 and falls to m + 2. With shape "hz" its sides are
    straight over Hz (librosa, torchaudio), with "mel" straight over mel (TensorFlow's
    `linear_to_mel_weight_matrix`, which also leaves the DC row empty). Norm "slaney" divides by
    half the width in Hz, so that each filter has unit area.
    """
    corners = np.linspace(hz_to_mel(f_min_hz, scale), hz_to_mel(f_max_hz, scale), num_bins + 2)
    corners_hz = mel_to_hz(corners, scale)
    bins_hz = np.linspace(0.0, sample_rate / 2, fft_length // 2 + 1)
    position, edges = bins_hz[:, None], corners_hz
    if shape == "mel":
        position, edges = hz_to_mel(bins_hz, scale)[:, None], corners
    rising = (position - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - position) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    if shape == "mel":
        weights[0] = 0.0
    if norm == "slaney":
        weights *= 2.0 / (corners_hz[2:] - corners_hz[:-2])
    weights = weights.astype(np.float32)
    weights.flags.writeable = False  # shared by every caller through the cache
    return weights


def apply(bins: Float[Array, "*B bins"], bank: Float[np.ndarray, "bins F"]) -> Float[Array, "*B F"]:
    """Product of a spectrum with a fixed, mostly empty filterbank.

    A mel bank for a long window is 97 % zeros. The filters are split into a few runs, and each run
    is multiplied with only the bins that it touches.
    """
    parts = [
        jnp.matmul(bins[..., low:high], bank[low:high, first:last], precision="highest")
        for first, last, low, high in _runs(bank)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _runs(bank: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(first filter, last filter, lowest bin, highest bin) of each run, ends exclusive."""
    num_bins, num_filters = bank.shape
    count = 1 if num_bins < 512 else 8
    runs = []
    for part in np.array_split(np.arange(num_filters), min(count, num_filters)):
        first, last = int(part[0]), int(part[-1]) + 1
        touched = np.flatnonzero(bank[:, first:last].any(axis=1))
        low, high = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 1)
        runs.append((first, last, low, high))
    return runs
