"""The constant-Q transform: as many bins to every octave, each with its own length of window.

    samples -> [halve the rate] per octave -> frames -> one set of kernels -> magnitude

The kernels of the top octave serve all octaves: each lower one looks at the signal at half the rate
(Schörkhuber and Klapuri 2010, with the kernels in the time domain as nnAudio's "2010v2" has them).
Every filter here is a matrix product over frames, which runs where matrix units do, and all octaves
share one product. Pure, batched and differentiable, like `spectrogram`; float32 always.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from musicjax.audio import stft
from musicjax.errors import AudioError, ConfigError

AnyArray = Array | np.ndarray

_FILTER_TAPS = 256  # of the low-pass filters before the rate is divided
_HALVING_TRANSITION = 0.001  # width of their slope, as a part of the band edge
_EARLY_TRANSITION = 0.03
_HANN_BANDWIDTH = 1.5
_FILTER_BLOCK = 128  # samples that one row of a filter's matrix product makes
_ROUNDING_DB = 1e-3  # by which levels may differ that are the same


@dataclass(frozen=True, kw_only=True)
class CQTConfig:
    """Every constant of a constant-Q front-end. Hashable, static under `jax.jit`.

    sample_rate      Hz.
    hop_length       samples between frames; it must halve as often as there are octaves below the
                     first.
    f_min_hz         centre of the lowest bin.
    num_bins         bins in all, upwards from there; the highest must lie below half the rate.
    bins_per_octave  bins to an octave; Q = 1 / (2^(1 / bins_per_octave) - 1).

    Raises ConfigError for a combination that cannot work.
    """

    sample_rate: int = 22_050
    hop_length: int = 256
    f_min_hz: float = 27.5
    num_bins: int = 309
    bins_per_octave: int = 36

    def __post_init__(self) -> None:
        for field in ("sample_rate", "hop_length", "num_bins", "bins_per_octave"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        top = self.f_min_hz * 2 ** ((self.num_bins - 1) / self.bins_per_octave)
        if not self.f_min_hz > 0 or top > self.sample_rate / 2:
            raise ConfigError(
                f"the bins reach from {self.f_min_hz:g} to {top:.0f} Hz; at {self.sample_rate} Hz "
                f"they must lie within 0 to {self.sample_rate / 2:g} Hz: take fewer num_bins."
            )
        if self.hop_length % 2 ** (self.num_octaves - 1):
            raise ConfigError(
                f"hop_length is {self.hop_length}; {self.num_octaves} octaves halve it "
                f"{self.num_octaves - 1} times: make it a multiple of {2 ** (self.num_octaves - 1)}"
                "."
            )

    @property
    def num_octaves(self) -> int:
        """Octaves, the lowest of which may be incomplete."""
        return math.ceil(self.num_bins / self.bins_per_octave)

    @property
    def frames_per_s(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def quality(self) -> float:
        """Q: centre frequency over bandwidth, the same for all bins."""
        return 1.0 / (2.0 ** (1.0 / self.bins_per_octave) - 1.0)


# Bittner et al. 2022, Basic Pitch: three bins a semitone from A0 up, as far as half the rate.
BASIC_PITCH_CQT = CQTConfig()


@dataclass(frozen=True)
class _Plan:
    """What the config comes to, in numbers. Arrays are read-only."""

    kernel: np.ndarray  # (window, 2 * bins_per_octave): real parts, then imaginary parts
    gain: np.ndarray  # (num_bins,): square roots of the windows' lengths
    halving: np.ndarray  # (taps,)
    early: np.ndarray  # (taps,), before all else
    early_factor: int


@functools.lru_cache(maxsize=16)
def _plan(config: CQTConfig) -> _Plan:
    rate, bins, quality = config.sample_rate, config.bins_per_octave, config.quality
    in_top_octave = config.num_bins % bins or bins
    top = config.f_min_hz * 2 ** (config.num_octaves - 1 + (in_top_octave - 1) / bins)
    count = _early_halvings(config, top)
    rate_s = rate / 2**count
    lowest = top / 2 ** (1 - 1 / bins)  # of the octave whose kernels serve all
    kernel = _kernels(quality, rate_s, lowest, bins)
    centres = config.f_min_hz * 2.0 ** (np.arange(config.num_bins) / bins)
    gain = 2**count * np.sqrt(np.ceil(quality * rate_s / centres))
    return _Plan(
        _frozen(np.concatenate([kernel.real, kernel.imag]).T),
        _frozen(gain),
        _frozen(lowpass(0.5, _HALVING_TRANSITION)),
        _frozen(lowpass(1 / 2**count, _EARLY_TRANSITION) if count else np.ones(1)),
        early_factor=2**count,
    )


def _frozen(values: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(values, np.float32)
    array.flags.writeable = False
    return array


def _early_halvings(config: CQTConfig, top_hz: float) -> int:
    """How often the rate can be halved before all else because the top bin lies so low."""
    cutoff = top_hz * (1 + 0.5 * _HANN_BANDWIDTH / config.quality)
    spare = math.ceil(math.log2(0.85 * (config.sample_rate // 2) / cutoff)) - 2
    hops = math.ceil(math.log2(config.hop_length)) - config.num_octaves + 1
    return min(max(spare, 0), max(hops, 0))


def _kernels(quality: float, rate: float, lowest_hz: float, count: int) -> np.ndarray:
    """One octave of complex sinusoids under Hann windows, each of L1 norm 1.

    (count, window) complex128, centred in a window that is a power of two.
    """
    size = 2 ** math.ceil(math.log2(math.ceil(quality * rate / lowest_hz)))
    kernels = np.zeros((count, size), np.complex128)
    for k in range(count):
        hz = lowest_hz * 2.0 ** (k / count)
        length = math.ceil(quality * rate / hz)
        start = math.ceil(size / 2 - length / 2) - length % 2
        n = np.arange(length) - (length + 1) // 2
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        wave = window * np.exp(2j * np.pi * n * hz / rate)
        kernels[k, start : start + length] = wave / np.abs(wave).sum()
    return kernels


def lowpass(band_edge: float, transition: float) -> Float[np.ndarray, "taps"]:
    """A linear-phase low-pass filter of 256 taps by frequency sampling under a Hamming window.

    band_edge is a part of half the sample rate; the gain falls from 1 to 0 between it divided and
    multiplied by 1 + transition.
    """
    grid = np.linspace(0.0, 1.0, _FILTER_TAPS + 1)
    slope = [0.0, band_edge / (1 + transition), band_edge * (1 + transition), 1.0]
    gain = np.interp(grid, slope, [1.0, 1.0, 0.0, 0.0])
    delay = np.exp(-0.5j * np.pi * (_FILTER_TAPS - 1) * grid)
    return np.fft.irfft(gain * delay)[:_FILTER_TAPS] * np.hamming(_FILTER_TAPS)


def num_cqt_frames(num_samples: int, config: CQTConfig) -> int:
    """Frames T that `cqt` makes of a clip; frame t is centred on sample t * hop."""
    return num_samples // config.hop_length + 1


def cqt(
    audio: Float[AnyArray, "*B N"] | Int[AnyArray, "*B N"], config: CQTConfig
) -> Complex[Array, "*B T F"]:
    """The constant-Q transform of audio; bins upwards, each scaled by the root of its length.

    audio: samples in [-1, 1] at `config.sample_rate`; int16 is divided by 32768. Each octave's
    signal is mirrored at its ends by half a window. Raises AudioError for a clip shorter than a
    hop.
    """
    real, imag = _parts(audio, config)
    return jax.lax.complex(real, -imag)


def cqt_power(
    audio: Float[AnyArray, "*B N"] | Int[AnyArray, "*B N"], config: CQTConfig
) -> Float[Array, "*B T F"]:
    """Squared magnitude of `cqt`, without complex numbers."""
    real, imag = _parts(audio, config)
    return real * real + imag * imag


def normalised_log(power: Float[AnyArray, "*B T F"]) -> Float[Array, "*B T F"]:
    """Level in dB, moved and scaled so that each clip spans 0 to 1; 0 for a clip of one level.

    Bittner et al. 2022: 10 log10(power + 1e-10) between the clip's least and largest value. Levels
    that differ by rounding alone are one.
    """
    level = (10 / math.log(10)) * jnp.log(jnp.asarray(power) + 1e-10)
    level = level + stft.highest(-level, of_each_clip=True)
    top = stft.highest(level, of_each_clip=True)
    differs = top > _ROUNDING_DB
    return jnp.where(differs, level / jnp.where(differs, top, 1.0), 0.0)


def _parts(audio: AnyArray, config: CQTConfig) -> tuple[Array, Array]:
    """Correlation with the cosines and with the sines, (*B, T, F) each."""
    if audio.shape[-1] < config.hop_length:
        raise AudioError(
            f"audio has shape {audio.shape}; the last axis is time and must hold at least a hop of "
            f"{config.hop_length} samples."
        )
    signal = jnp.asarray(audio)
    if signal.dtype == jnp.int16:
        signal = signal.astype(jnp.float32) / 32768.0
    if not jnp.issubdtype(signal.dtype, jnp.floating):
        raise AudioError(f"audio has dtype {audio.dtype}; give floats in [-1, 1] or int16.")
    plan, signal = _plan(config), signal.astype(jnp.float32)
    window = plan.kernel.shape[0]
    count, hop = num_cqt_frames(signal.shape[-1], config), config.hop_length // plan.early_factor
    signal = divide_rate(signal, plan.early, plan.early_factor)
    frames = []
    for octave in range(config.num_octaves):
        if octave:
            signal, hop = divide_rate(signal, plan.halving, 2), hop // 2
        frames.append(stft.frame(_mirrored(signal, window // 2), window, hop, count))
    stacked = jnp.stack(frames[::-1], axis=-2)  # (*B, T, octaves, window), the lowest first
    products = jnp.matmul(stacked, plan.kernel, precision="highest")
    real, imag = (
        part.reshape(*part.shape[:-2], -1)[..., -config.num_bins :] * plan.gain
        for part in jnp.split(products, 2, axis=-1)
    )
    return real, imag


def _mirrored(signal: Array, width: int) -> Array:
    """The signal with `width` samples mirrored at both ends, back and forth if it is short."""
    count = signal.shape[-1]
    if width < count:
        return stft.reflect(signal, width)
    # Low octaves of a short clip: many mirrorings, as one look-up.
    return signal[..., np.pad(np.arange(count), width, "reflect" if count > 1 else "edge")]


def divide_rate(
    signal: Float[Array, "*B N"], taps: Float[np.ndarray, "taps"], factor: int
) -> Float[Array, "*B M"]:
    """Filter a signal, zeros around it, and keep every `factor`-th sample.

    As a matrix product: each row makes a block of samples from all that its taps reach.
    """
    if factor == 1:
        return signal
    edge = (len(taps) - 1) // 2
    count = (signal.shape[-1] + 2 * edge - len(taps)) // factor + 1
    block = min(_FILTER_BLOCK, count)
    blocks, span = -(-count // block), (block - 1) * factor + len(taps)
    rows = stft.frame(stft.pad(signal, edge, edge), span, block * factor, blocks)
    made = jnp.matmul(rows, _filter_matrix(taps.tobytes(), factor, block), precision="highest")
    return made.reshape(*signal.shape[:-1], blocks * block)[..., :count]


@functools.lru_cache(maxsize=64)
def _filter_matrix(taps: bytes, factor: int, block: int) -> np.ndarray:
    values = np.frombuffer(taps, np.float32)
    matrix = np.zeros(((block - 1) * factor + len(values), block), np.float32)
    for column in range(block):
        matrix[column * factor : column * factor + len(values), column] = values
    matrix.flags.writeable = False
    return matrix
