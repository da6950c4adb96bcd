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
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio import filterbanks, stft
from musicjax.errors import AudioError, ConfigError

AnyArray = Array | np.ndarray

_CHOICES = {
    "window": ("hann", "hamming", "rectangular"),
    "padding": ("reflect", "zeros", "end", "none"),
    "features": ("spectrum", "real", "frames"),
    "dft": ("fft", "matmul"),
    "bank": ("mel", "none"),
    "mel_scale": ("htk", "slaney"),
    "mel_norm": ("slaney", "none"),
    "mel_shape": ("hz", "mel"),
    "log": ("none", "ln", "log10", "db"),
    "log_floor_mode": ("clamp", "add", "replace"),
    "range_scope": ("clip", "batch"),
    "standardise_audio": ("none", "clip", "frame", "frame_unbiased"),
}


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Every constant of a front-end. Hashable, so it can be a static argument of `jax.jit`.

    Framing
      sample_rate        Hz; audio must be resampled to it before (`load_audio` does).
      standardise_audio  "clip": subtract the clip's mean and divide by its deviation first;
                         "frame" / "frame_unbiased": the same for each frame (CREPE; the second
                         divides by N - 1). "none" leaves the audio alone.
      standardise_floor  smallest deviation divided by.
      window_length      samples of the (periodic) window; centred in the DFT if shorter than it.
      fft_length         samples of the DFT.
      hop_length         samples between frames.
      window             "hann", "hamming" or "rectangular".
      padding            "reflect" or "zeros": half a DFT before and after, so that frame t is
                         centred on sample t * hop; "end": none before, zeros after, a frame at
                         each multiple of the hop (MT3); "none": only frames inside the signal.
      drop_last_sample   leave out the last sample of the clip (the Onsets & Frames port).
      whole_hops         first pad with zeros to a whole number of hops.
      drop_last_frame    leave out the last frame.
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
    standardise_audio: Literal["none", "clip", "frame", "frame_unbiased"] = "none"
    standardise_floor: float = 1e-8
    window_length: int = 2048
    fft_length: int = 2048
    hop_length: int = 512
    window: Literal["hann", "hamming", "rectangular"] = "hann"
    padding: Literal["reflect", "zeros", "end", "none"] = "reflect"
    drop_last_sample: bool = False
    whole_hops: bool = False
    drop_last_frame: bool = False
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
    if audio.shape[-1] - int(config.drop_last_sample) < 1:
        raise AudioError(
            f"audio has shape {audio.shape}; the last axis is time and must hold at least "
            f"{1 + int(config.drop_last_sample)} sample(s)."
        )
    total = num_frames(audio.shape[-1], config)
    mask = None if lengths is None else frame_mask(lengths, audio.shape[-1], config)
    frames = _frames(audio, config, lengths, total)  # (*B, T, fft_length)
    if config.standardise_audio in ("frame", "frame_unbiased"):
        frames = _standardise(
            frames, config.standardise_floor, unbiased=config.standardise_audio == "frame_unbiased"
        )
    if window is None:
        weights = stft.window(config.window, config.window_length, config.fft_length)
    else:
        weights = stft.centre_window(jnp.asarray(window, jnp.float32), config.fft_length)
        if weights.ndim == 2:  # (K, fft_length): an axis of windows before T
            frames, weights = frames[..., None, :, :], weights[:, None, :]
            mask = None if mask is None else mask[..., None, :]
    if config.features == "frames":
        features = frames if config.window == "rectangular" and window is None else frames * weights
    else:
        features = _spectrum_bins(frames, weights, config, bank)
    features = _compress(features, config, mask)
    return features if mask is None else jnp.where(mask[..., None], features, 0.0)


def _as_float32(audio: AnyArray) -> Array:
    audio = jnp.asarray(audio)
    if audio.dtype == jnp.int16:
        return audio.astype(jnp.float32) / 32768.0
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise AudioError(f"audio has dtype {audio.dtype}; give floats in [-1, 1] or int16.")
    return audio.astype(jnp.float32)


def _frames(audio: Array, config: FrontendConfig, lengths, total: int) -> Array:
    """Pad as the config says and cut into (*B, T, fft_length)."""
    if config.drop_last_sample:
        audio = audio[..., :-1]
        lengths = None if lengths is None else jnp.asarray(lengths) - 1
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        inside = jnp.arange(audio.shape[-1]) < lengths[..., None]
        audio = jnp.where(inside, audio, 0.0)
    if config.standardise_audio == "clip":
        audio = _standardise_clip(audio, config.standardise_floor, lengths)
    hop, size = config.hop_length, config.fft_length
    if config.whole_hops:
        audio = stft.pad_end(audio, -audio.shape[-1] % hop)
        lengths = None if lengths is None else -(-lengths // hop) * hop
    if config.padding == "reflect":
        audio = stft.reflect(audio, size // 2, lengths)
    elif config.padding == "zeros":
        audio = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(size // 2, size // 2)])
    return stft.frame(audio, size, hop, total)


def _standardise(x: Array, floor: float, *, unbiased: bool) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    count = x.shape[-1] - int(unbiased)
    deviation = stft.safe_sqrt((x * x).sum(axis=-1, keepdims=True) / count)
    return x / jnp.maximum(deviation, floor)


def _standardise_clip(audio: Array, floor: float, lengths) -> Array:
    if lengths is None:
        return _standardise(audio, floor, unbiased=True)
    inside = jnp.arange(audio.shape[-1]) < lengths[..., None]
    count = lengths[..., None].astype(jnp.float32)
    centred = jnp.where(inside, audio - audio.sum(-1, keepdims=True) / count, 0.0)
    deviation = stft.safe_sqrt((centred * centred).sum(-1, keepdims=True) / (count - 1))
    return centred / jnp.maximum(deviation, floor)


def _spectrum_bins(frames: Array, weights, config: FrontendConfig, bank) -> Array:
    """(|X| or |Re X|)^power through the filterbank."""
    real, imag = stft.dft(frames, weights, config.dft)
    if config.orthonormal:
        real, imag = real / math.sqrt(config.fft_length), imag / math.sqrt(config.fft_length)
    squared = real * real if config.features == "real" else real * real + imag * imag
    bins = stft.power_of_square(squared, config.power)
    if bank is not None:
        features = jnp.matmul(bins, jnp.asarray(bank, jnp.float32), precision="highest")
    elif config.bank == "mel":
        features = filterbanks.apply(bins, filterbanks.mel_bank(*_mel_arguments(config)))
    else:
        return bins
    return features if config.bank_power == 1.0 else features**config.bank_power


def _mel_arguments(config: FrontendConfig) -> tuple:
    return (
        config.sample_rate,
        config.fft_length,
        config.num_bins,
        float(config.f_min_hz),
        float(config.f_max_hz),
        config.mel_scale,
        config.mel_norm,
        config.mel_shape,
    )


def mel_matrix(config: FrontendConfig) -> np.ndarray:
    """The configured filterbank as a float32 matrix (fft_length // 2 + 1, num_bins)."""
    return filterbanks.mel_bank(*_mel_arguments(config))


def _compress(x: Array, config: FrontendConfig, mask: Array | None) -> Array:
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
