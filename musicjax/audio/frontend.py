"""The front-end: from samples to the features a network hears, in one pure, differentiable call.

    samples -> pad -> frames -> window -> DFT -> |X|^power -> filterbank -> log -> normalisation

Each published system fixes every one of these steps, and systems that look alike differ in most of
them (four piano models share "16 kHz, 2048, 229 mels" and agree on little else). So the steps are
one frozen `FrontendConfig` that travels with the weights, and `musicjax.audio.presets` names the
published ones.

Everything is float32 whatever the dtype of the model behind it: bfloat16 has eight bits, too few
for a log-mel. `spectrogram` is never jitted here; the caller's jit, vmap, grad, scan or sharding
goes through it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from musicjax.audio import filterbanks, fourier, stft
from musicjax.audio.config import FrontendConfig
from musicjax.audio.framing import frame_mask, num_frames, padded_signal, same_padding
from musicjax.errors import AudioError

AnyArray = Array | np.ndarray

# On a CPU frames are worked off in blocks of so many samples (1 MB), which stay in the cache;
# frames of a whole clip at once cost more in memory traffic and page faults than in arithmetic.
_BLOCK_SAMPLES = 1 << 18
_LEAST_BLOCK = 16


def spectrogram(
    audio: Float[AnyArray, "*B N"] | Int[AnyArray, "*B N"],
    config: FrontendConfig,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    bank: Float[AnyArray, "bins F"] | None = None,
    window: Float[AnyArray, "*K W"] | None = None,
) -> Float[Array, "..."]:
    """Features of audio.

    Args:
      audio: (*B, N) samples in [-1, 1] at `config.sample_rate`, any leading axes; int16 is taken
        as 16-bit PCM and divided by 32768.
      config: the front-end; see `preset`.
      lengths: (*B,) samples of each clip that count when the batch is padded to N. Each clip's
        frames then equal those of the clip alone (reflection happens at its own end), and frames
        past its own count are 0.0, which is what a convolution's zero padding puts there.
      bank: (fft_length // 2 + 1, F) filterbank that replaces the configured one, such as a learned
        bank or the one stored in a checkpoint. Differentiable.
      window: (W,) window that replaces the configured one, or (K, W) several, which put an axis K
        before T. Differentiable.

    Returns:
      float32 (*B, T, F), or (*B, K, T, F) with several windows; T = `num_frames(N, config)`.

    A clip shorter than the half DFT that reflection needs is reflected back and forth until it
    fills it, as `numpy.pad` does. Raises AudioError for zero samples.
    """
    audio = _as_float32(audio)
    mask = None if lengths is None else frame_mask(lengths, audio.shape[-1], config)
    signal = padded_signal(audio, config, lengths)
    total = num_frames(audio.shape[-1], config)
    if config.standardise in ("all_frames", "all_channels"):
        signal = _standardise_signal(signal, mask, total, config)
    weights: Array | np.ndarray = _weights(config)
    if window is not None:
        weights = stft.centre_window(jnp.asarray(window, jnp.float32), config.fft_length)
    several = weights.ndim == 2

    def features_of(signal: Array, count: int) -> Array:
        frames = stft.frame(signal, config.fft_length, config.hop_length, count)
        frames = _standardise_frames(frames, config)
        if several:  # an axis of windows before T
            return _features(frames[..., None, :, :], weights[:, None, :], config, bank)
        return _features(frames, weights, config, bank)

    copies = math.prod(audio.shape[:-1]) * (weights.shape[0] if several else 1)
    features = _in_blocks(features_of, signal, total, copies, config)
    mask = mask[..., None, :] if several and mask is not None else mask
    features = _compressed(features, config, mask)
    return features if mask is None else jnp.where(mask[..., None], features, 0.0)


def complex_spectrogram(
    audio: Float[AnyArray, "*B N"] | Int[AnyArray, "*B N"], config: FrontendConfig
) -> Complex[Array, "*B T bins"]:
    """The complex STFT with the framing of `config`; bins = fft_length // 2 + 1.

    The first half of a separation front-end; `inverse_spectrogram` is the other. Filterbank, power
    and log of the config play no part.
    """
    audio = _as_float32(audio)
    signal = padded_signal(audio, config)
    total = num_frames(audio.shape[-1], config)
    frames = stft.frame(signal, config.fft_length, config.hop_length, total)
    real, imag = stft.dft(frames, _weights(config), config.dft)
    norm = math.sqrt(config.fft_length) if config.orthonormal else 1.0
    return jax.lax.complex(real / norm, imag / norm)


def inverse_spectrogram(
    spectrum: Complex[Array, "*B T bins"], config: FrontendConfig, num_samples: int
) -> Float[Array, "*B N"]:
    """Audio of exactly `num_samples` samples from a complex STFT made with `config`.

    Least-squares inverse (Griffin and Lim 1984): windowed overlap-add divided by the overlap-add of
    the squared window. It undoes `complex_spectrogram` exactly wherever some window is not zero,
    which with centred padding and a hop of half a window or less is everywhere.
    """
    frames = fourier.irfft(spectrum, config.fft_length)
    if config.orthonormal:
        frames = frames * math.sqrt(config.fft_length)
    left = 0
    if config.padding in ("reflect", "zeros"):
        left = config.fft_length // 2
    elif config.padding == "same":
        left = same_padding(num_samples, config)[0]
    audio = stft.overlap_add_inverse(frames, _weights(config), config.hop_length)
    return stft.pad_end(audio[..., left:], num_samples)[..., :num_samples]


def _as_float32(audio: AnyArray) -> Array:
    audio = jnp.asarray(audio)
    if audio.dtype == jnp.int16:
        return audio.astype(jnp.float32) / 32768.0
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise AudioError(f"audio has dtype {audio.dtype}; give floats in [-1, 1] or int16.")
    return audio.astype(jnp.float32)


def _weights(config: FrontendConfig) -> np.ndarray:
    return stft.window(config.window, config.window_length, config.fft_length)


def _in_blocks(
    features_of: Callable[[Array, int], Array],
    signal: Array,
    total: int,
    copies: int,
    config: FrontendConfig,
) -> Array:
    """`features_of(signal, total)`, on a CPU one block of frames after another.

    Frames are independent, so the result is the same. Only shorter outputs than inputs gain:
    features that are as long as their frames are made at once everywhere.
    """
    block = max(_BLOCK_SAMPLES // (config.fft_length * max(copies, 1)), _LEAST_BLOCK)
    if total < 2 * block or config.features == "frames" or config.bank == "none":
        return features_of(signal, total)

    def block_by_block(signal: Array) -> Array:
        count, hop = -(-total // block), config.hop_length
        span = (block - 1) * hop + config.fft_length
        signal = stft.pad_end(signal, (count - 1) * block * hop + span)

        def one(index: Array) -> Array:
            start = index * (block * hop)
            return features_of(jax.lax.dynamic_slice_in_dim(signal, start, span, -1), block)

        blocks = jnp.moveaxis(jax.lax.map(one, jnp.arange(count)), 0, -3)  # (*B, count, block, F)
        joined = blocks.reshape(*blocks.shape[:-3], count * block, blocks.shape[-1])
        return joined[..., :total, :]

    def at_once(signal: Array) -> Array:
        return features_of(signal, total)

    return jax.lax.platform_dependent(signal, cpu=block_by_block, default=at_once)


def _standardise_frames(frames: Array, config: FrontendConfig) -> Array:
    """Zero mean and unit deviation for each frame."""
    if config.standardise not in ("frame", "frame_unbiased"):
        return frames
    centred = frames - frames.mean(axis=-1, keepdims=True)
    degrees = frames.shape[-1] - int(config.standardise == "frame_unbiased")
    deviation = stft.safe_sqrt((centred * centred).sum(axis=-1, keepdims=True) / degrees)
    return centred / jnp.maximum(deviation, config.standardise_floor)


def _standardise_signal(
    signal: Array, mask: Array | None, total: int, config: FrontendConfig
) -> Array:
    """Zero mean and unit deviation over all frames of a clip, each sample counted in each frame.

    Frames need not be made for that: a sample's weight is the number of frames it lies in.
    """
    axes = (-2, -1) if config.standardise == "all_channels" else (-1,)
    counted = jnp.ones(total, bool) if mask is None else mask
    ones = jnp.broadcast_to(counted, (*signal.shape[:-1], total)).astype(jnp.float32)
    frames = jnp.broadcast_to(ones[..., None], (*ones.shape, config.fft_length))
    counts = stft.pad_end(stft.overlap_add(frames, config.hop_length), signal.shape[-1])
    counts = counts[..., : signal.shape[-1]]
    number = ones.sum(axis=axes, keepdims=True) * config.fft_length
    mean = (signal * counts).sum(axis=axes, keepdims=True) / number
    variance = ((signal - mean) ** 2 * counts).sum(axis=axes, keepdims=True) / (number - 1)
    return (signal - mean) / (stft.safe_sqrt(variance) + config.standardise_floor)


def _features(
    frames: Array, weights: AnyArray, config: FrontendConfig, bank: AnyArray | None
) -> Array:
    """Windowed frames, or (|X| or |Re X|)^power of their DFT through the filterbank."""
    if config.features == "frames":
        return frames * weights
    real, imag = stft.dft(frames, weights, config.dft)
    squared = real * real if config.features == "real" else real * real + imag * imag
    if config.orthonormal:
        squared = squared / config.fft_length
    bins = stft.power_of_square(squared, config.power)
    if bank is not None:
        features = jnp.matmul(bins, jnp.asarray(bank, jnp.float32), precision="highest")
    elif config.bank == "mel":
        features = filterbanks.apply(bins, mel_matrix(config))
    else:
        features = bins
    if config.bank_power != 1.0:
        features = features**config.bank_power
    return features.astype(jnp.float16).astype(jnp.float32) if config.round_to_half else features


def mel_matrix(config: FrontendConfig) -> Float[np.ndarray, "bins F"]:
    """The configured mel filterbank, float32 (fft_length // 2 + 1, num_bins)."""
    return filterbanks.mel_bank(
        config.sample_rate,
        config.fft_length,
        config.num_bins,
        float(config.f_min_hz),
        float(config.f_max_hz),
        config.mel_scale,
        config.mel_norm,
        config.mel_shape,
    )


def _compressed(x: Array, config: FrontendConfig, mask: Array | None) -> Array:
    """Log, dynamic range, normalisation."""
    if config.log_gain != 1.0:
        x = x * config.log_gain
    if config.log != "none":
        x = (
            _log(x, config)
            * {"ln": 1.0, "log10": 1 / math.log(10), "db": 10 / math.log(10)}[config.log]
        )
    if config.dynamic_range is not None or config.relative_to_max:
        counted = x if mask is None else jnp.where(mask[..., None], x, -jnp.inf)
        top = stft.highest(counted, of_each_clip=config.range_scope == "clip")
        if config.dynamic_range is not None:
            x = jnp.maximum(x, top - config.dynamic_range)
        if config.relative_to_max:
            x = x - top
    if config.mean != 0.0:
        x = x - config.mean
    return x if config.scale == 1.0 else x / config.scale


def _log(x: Array, config: FrontendConfig) -> Array:
    if config.log_floor_mode == "clamp":
        return jnp.log(jnp.maximum(x, config.log_floor))
    if config.log_floor_mode == "replace":
        return jnp.log(jnp.where(x <= 0, config.log_floor, x))
    return jnp.log1p(x) if config.log_floor == 1.0 else jnp.log(x + config.log_floor)
