"""What a front-end is made of: one frozen value that travels with the weights."""

from dataclasses import dataclass
from typing import Literal

from musicjax.errors import ConfigError

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
    "standardise": ("none", "frame", "frame_unbiased", "all_frames", "all_channels"),
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
                         window ("frame_unbiased" divides by N - 1), of "all_frames" of the clip
                         together, or of those of "all_channels" of the axis before time together
                         (both unbiased); "none" leaves the samples alone.
      standardise_floor  smallest deviation divided by; over many frames it is added to the
                         deviation instead.
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
    standardise: Literal["none", "frame", "frame_unbiased", "all_frames", "all_channels"] = "none"
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
