"""The front-end: from samples to the features a network hears, in one pure, differentiable call.

    samples -> pad -> frames -> window -> DFT -> |X|^power -> filterbank -> log -> normalisation

Each published system fixes every one of these steps, and systems that look alike differ in most of
them (four piano models share "16 kHz, 2048, 229 mels" and agree on nothing else). So the steps are
one frozen `FrontendConfig` that travels with the weights, and `musicjax.audio.presets` names the
published ones.

Everything is float32 whatever the dtype of the model behind it: bfloat16 has eight bits, too few
for a log-mel. `spectrogram` is never jitted here; the caller's jit, vmap, grad, scan or sharding
goes through it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from musicjax.audio import filterbanks, stft
from musicjax.errors import AudioError, ConfigError

AnyArray = Array | np.ndarray

_CHOICES = {
    "window": ("hann", "hamming", "rectangular"),
    "padding": ("reflect", "zeros", "end", "same", "none"),
    "features": ("spectrum", "real", "frames"),
    "dft": ("fft", "matmul"),
    "bank": ("mel", "none"),
    "mel_scale": ("htk", "slaney"),
    "mel_norm": ("slaney", "none"),
    "mel_shape": ("hz", "mel"),
    "log": ("none", "ln", "log10", "db"),
    "log_floor_mode": ("clamp", "add", "replace"),
    "range_scope": ("clip", "batch"),
    "standardise": ("none", "frame", "frame_unbiased", "all_frames"),
}


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Every constant of a front-end. Hashable, so it can be a static argument of `jax.jit`.

    Framing
      sample_rate        Hz; audio must be resampled to it before (`load_audio` does).
      window_length      samples of the (periodic) window; centred in the DFT if shorter than it.
      fft_length         samples of the DFT.
      hop_length         samples between frames.
      window             "hann", "hamming" or "rectangular".
      padding            "reflect" or "zeros": half a DFT before and after, so that frame t is
                         centred on sample t * hop; "end": none before, zeros after, a frame at
                         each multiple of the hop (MT3); "same": zeros on both sides, as few as
                         make ceil(N / hop) frames (Keras); "none": only frames inside the signal.
      drop_last_sample   leave out the last sample of the clip (the Onsets & Frames port).
      whole_hops         first pad with zeros to a whole number of hops.
      drop_last_frame    leave out the last frame.
      standardise        subtract the mean and divide by the deviation of each "frame" before the
                         window ("frame_unbiased" divides by N - 1), or of "all_frames" of the
                         clip together (unbiased); "none" leaves the samples alone.
      standardise_floor  smallest deviation divided by.
    Spectrum
      features           "spectrum": |X|^power; "real": |Re X|^power, a published slip that weights
                         depend on; "frames": the windowed samples themselves, no DFT.
      power              1 magnitude, 2 power, or any other exponent.
      orthonormal        divide the DFT by sqrt(fft_length).
      dft                "fft", or "matmul" with the DFT as one matrix product (GPU, short windows).
    Filterbank
      bank               "mel", or "none" for all bins. An array given to `spectrogram` replaces it.
      num_bins           filters.
      f_min_hz, f_max_hz edges of the lowest and highest filter.
      mel_scale          "htk" or "slaney".
      mel_norm           "slaney": each triangle has unit area over Hz; "none": unit height.
      mel_shape          triangles straight over "hz" (librosa, torchaudio) or "mel" (TensorFlow).
      bank_power         exponent applied after the filterbank.
      round_to_half      round the filterbank's output to float16, as musicnn does.
    Log and range
      log                "none", "ln", "log10", or "db" = 10 log10.
      log_gain           x is multiplied by it first.
      log_floor          what keeps the log finite, in the unit of the multiplied x.
      log_floor_mode     "clamp": max(x, floor); "add": x + floor; "replace": floor only where
                         x <= 0, so that tiny values stay below it (MT3).
      dynamic_range      raise values to at least (maximum - dynamic_range), in the log's unit.
      range_scope        maximum over the "clip" or over the whole "batch" (then a clip's features
                         depend on its neighbours; published weights do).
      relative_to_max    subtract the maximum (within range_scope).
      mean, scale        last of all (x - mean) / scale.

    Raises ConfigError for a combination that cannot work.
    """

    sample_rate: int = 16_000
    window_length: int = 2048
    fft_length: int = 2048
    hop_length: int = 512
    window: Literal["hann", "hamming", "rectangular"] = "hann"
    padding: Literal["reflect", "zeros", "end", "same", "none"] = "reflect"
    drop_last_sample: bool = False
    whole_hops: bool = False
    drop_last_frame: bool = False
    standardise: Literal["none", "frame", "frame_unbiased", "all_frames"] = "none"
    standardise_floor: float = 1e-8
    features: Literal["spectrum", "real", "frames"] = "spectrum"
    power: float = 2.0
    orthonormal: bool = False
    dft: Literal["fft", "matmul"] = "fft"
    bank: Literal["mel", "none"] = "mel"
    num_bins: int = 229
    f_min_hz: float = 30.0
    f_max_hz: float = 8000.0
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["slaney", "none"] = "slaney"
    mel_shape: Literal["hz", "mel"] = "hz"
    bank_power: float = 1.0
    round_to_half: bool = False
    log: Literal["none", "ln", "log10", "db"] = "ln"
    log_gain: float = 1.0
    log_floor: float = 1e-5
    log_floor_mode: Literal["clamp", "add", "replace"] = "clamp"
    dynamic_range: float | None = None
    range_scope: Literal["clip", "batch"] = "clip"
    relative_to_max: bool = False
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(choices)}."
                )
        for field in ("sample_rate", "window_length", "fft_length", "hop_length"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if self.window_length > self.fft_length:
            raise ConfigError(
                f"window_length is {self.window_length} but fft_length only {self.fft_length}; "
                "the window must fit into the DFT."
            )
        if self.bank == "mel" and self.features != "frames":
            if self.num_bins < 1:
                raise ConfigError(f"num_bins is {self.num_bins}; a filterbank needs at least 1.")
            if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2:
                raise ConfigError(
                    f"the filterbank spans {self.f_min_hz:g} to {self.f_max_hz:g} Hz; at "
                    f"{self.sample_rate} Hz it must lie within 0 to {self.sample_rate / 2:g} Hz."
                )
        if self.log != "none" and self.log_floor <= 0:
            raise ConfigError(f"log_floor is {self.log_floor:g}; a log needs a positive floor.")
        if self.scale == 0:
            raise ConfigError("scale is 0; features are divided by it.")

    @property
    def frames_per_s(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def output_bins(self) -> int:
        """Numbers per frame (the axis F) when no bank is given as an array."""
        if self.features == "frames":
            return self.fft_length
        return self.num_bins if self.bank == "mel" else self.fft_length // 2 + 1


def num_frames(num_samples: int, config: FrontendConfig) -> int:
    """Frames T that `spectrogram` makes of a clip; 0 if a clip is too short for padding "none"."""
    return int(_count_frames(num_samples, config))


def _count_frames(num_samples: int | AnyArray, config: FrontendConfig):
    # Python ints or traced arrays of lengths: only operators that both understand.
    n = num_samples - int(config.drop_last_sample)
    hop = config.hop_length
    if config.whole_hops:
        n = -(-n // hop) * hop
    if config.padding == "none":
        count = (n - config.fft_length) // hop + 1
    elif config.padding == "end":
        count = n // hop + 1
    elif config.padding == "same":
        count = -(-n // hop)
    else:  # an odd fft_length pads one sample less than it spans
        count = (n + 2 * (config.fft_length // 2) - config.fft_length) // hop + 1
    count = count - int(config.drop_last_frame)
    return max(count, 0) if isinstance(count, int) else jnp.maximum(count, 0)


def frame_mask(
    lengths: Int[AnyArray, "*B"], num_samples: int, config: FrontendConfig
) -> Bool[Array, "*B T"]:
    """True for the frames that a clip of each length has, in a batch padded to `num_samples`."""
    counts = _count_frames(jnp.asarray(lengths), config)
    return jnp.arange(num_frames(num_samples, config)) < counts[..., None]


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
    frames = _standardise(_frames(audio, config, lengths), mask, config)  # (*B, T, fft_length)
    if window is None:
        weights = _weights(config)
    else:
        weights = stft.centre_window(jnp.asarray(window, jnp.float32), config.fft_length)
        if weights.ndim == 2:  # (K, fft_length): an axis of windows before T
            frames, weights = frames[..., None, :, :], weights[:, None, :]
            mask = None if mask is None else mask[..., None, :]
    if config.features == "frames":
        features = frames if config.window == "rectangular" and window is None else frames * weights
    else:
        features = _filtered(*stft.dft(frames, weights, config.dft), config, bank)
    features = _compressed(features, config, mask)
    return features if mask is None else jnp.where(mask[..., None], features, 0.0)


def complex_spectrogram(
    audio: Float[AnyArray, "*B N"] | Int[AnyArray, "*B N"], config: FrontendConfig
) -> Complex[Array, "*B T bins"]:
    """The complex STFT with the framing of `config`; bins = fft_length // 2 + 1.

    The first half of a separation front-end; `inverse_spectrogram` is the other. Filterbank, power
    and log of the config play no part.
    """
    frames = _frames(_as_float32(audio), config, None)
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
    frames = jnp.fft.irfft(spectrum, n=config.fft_length)
    if config.orthonormal:
        frames = frames * math.sqrt(config.fft_length)
    left = 0
    if config.padding in ("reflect", "zeros"):
        left = config.fft_length // 2
    elif config.padding == "same":
        left = _same_padding(num_samples, config)[0]
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


def _frames(audio: Array, config: FrontendConfig, lengths: Array | None) -> Array:
    """Pad as the config says and cut into (*B, T, fft_length)."""
    total = num_frames(audio.shape[-1], config)
    if audio.shape[-1] - int(config.drop_last_sample) < 1:
        raise AudioError(
            f"audio has shape {audio.shape}; the last axis is time and must hold at least "
            f"{1 + int(config.drop_last_sample)} sample(s)."
        )
    if config.drop_last_sample:
        audio = audio[..., :-1]
    if lengths is not None:
        lengths = jnp.asarray(lengths) - int(config.drop_last_sample)
        audio = jnp.where(jnp.arange(audio.shape[-1]) < lengths[..., None], audio, 0.0)
    hop, size = config.hop_length, config.fft_length
    if config.whole_hops:
        audio = stft.pad_end(audio, -(-audio.shape[-1] // hop) * hop)
        lengths = None if lengths is None else -(-lengths // hop) * hop
    if config.padding == "reflect":
        audio = stft.reflect(audio, size // 2, lengths)
    elif config.padding == "zeros":
        audio = stft.pad(audio, size // 2, size // 2)
    elif config.padding == "same" and lengths is None:
        audio = stft.pad(audio, *_same_padding(audio.shape[-1], config))
    elif config.padding == "same":
        # Each clip has its own left padding: put it in after a right shift by that many samples.
        audio = stft.shift(stft.pad(audio, 0, size), _same_padding(lengths, config)[0])
    return stft.frame(audio, size, hop, total)


def _same_padding(num_samples: int | Array, config: FrontendConfig) -> tuple:
    """Zeros before and after that make ceil(N / hop) frames; the odd one goes after."""
    hop = config.hop_length
    missing = (-(-num_samples // hop) - 1) * hop + config.fft_length - num_samples
    missing = max(missing, 0) if isinstance(missing, int) else jnp.maximum(missing, 0)
    return missing // 2, missing - missing // 2


def _standardise(frames: Array, mask: Array | None, config: FrontendConfig) -> Array:
    """Zero mean and unit deviation per frame, or over all frames of a clip that count."""
    if config.standardise == "none":
        return frames
    together = config.standardise == "all_frames"
    axes = (-2, -1) if together else (-1,)
    if mask is None or not together:
        counted, count = jnp.ones_like(frames[..., :1]), math.prod(frames.shape[a] for a in axes)
    else:
        counted = mask[..., None].astype(jnp.float32)
        count = counted.sum(axis=(-2, -1), keepdims=True) * frames.shape[-1]
    centred = frames - (frames * counted).sum(axis=axes, keepdims=True) / count
    degrees = count - int(config.standardise != "frame")
    variance = (centred * centred * counted).sum(axis=axes, keepdims=True) / degrees
    return centred / jnp.maximum(stft.safe_sqrt(variance), config.standardise_floor)


def _filtered(real: Array, imag: Array, config: FrontendConfig, bank: AnyArray | None) -> Array:
    """(|X| or |Re X|)^power through the filterbank."""
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
        axes = (-2, -1) if config.range_scope == "clip" else None
        counted = x if mask is None else jnp.where(mask[..., None], x, -jnp.inf)
        top = counted.max(axis=axes, keepdims=True, initial=-jnp.inf)
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
