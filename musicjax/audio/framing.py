"""Where frames lie: how many there are, what surrounds the signal, which of them count."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio import stft
from musicjax.audio.config import FrontendConfig
from musicjax.errors import AudioError, ConfigError

AnyArray = Array | np.ndarray


@dataclass(frozen=True)
class Windowing:
    """Windows that a network was made for, where they are not whole frames long.

    Window w of a recording begins `lead` samples before sample w * `stride` and has `samples`
    samples, zeros where there is no recording. Of its frames those from `first` up to `last`
    (exclusive) are kept; frame `first` is centred on sample w * `stride`.
    """

    samples: int
    stride: int
    lead: int
    first: int
    last: int


@dataclass(frozen=True)
class StreamSpec:
    """How a model hears sound as it comes: steps of `hop` samples, each with `frames` frames.

    sample_rate  Hz of the samples that a step takes.
    hop          samples of a step. Frame i stands at sample i * hop / frames of the stream.
    lookahead    samples, counted from where a frame stands, that must have come before the frame
                 can be known: half of a centred window, and what the network hears ahead.
    frames       frames that a step gives.

    What a step gives is `delay` steps old. Raises ConfigError for sizes that cannot work.
    """

    sample_rate: int
    hop: int
    lookahead: int
    frames: int = 1

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.hop, self.frames) < 1 or self.lookahead < 0:
            raise ConfigError(f"{self} cannot be heard: rate, hop and frames must be positive.")
        if self.hop % self.frames:
            raise ConfigError(f"a hop of {self.hop} samples does not hold {self.frames} frames.")

    @property
    def delay(self) -> int:
        """Steps until the first frame: step n gives the frames of step n - delay of the sound."""
        return max(math.ceil((self.lookahead - self.hop // self.frames) / self.hop), 0)

    @property
    def latency_s(self) -> float:
        """Algorithmic latency: seconds of sound after an instant until its frame can be known.

        The wait for the step to fill is in it, the time of computing is not. Of several frames of a
        step it is that of the first, which waits longest.
        """
        return (self.delay + 1) * self.hop / self.sample_rate

    def time_s(self, frame: int) -> float:
        """Where a frame stands, in seconds from the first sample."""
        return frame * self.hop / self.frames / self.sample_rate


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


def padded_signal(
    audio: Float[Array, "*B N"], config: FrontendConfig, lengths: Int[AnyArray, "*B"] | None = None
) -> Float[Array, "*B padded"]:
    """Surround a clip as `config.padding` says, so that frame t starts at sample t * hop.

    With `lengths` each clip is padded at its own end. Raises AudioError for zero samples.
    """
    least = 1 + int(config.drop_last_sample)
    if audio.shape[-1] < least:
        raise AudioError(
            f"audio has shape {audio.shape}; the last axis is time and must hold at least "
            f"{least} sample(s)."
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
        return stft.reflect(audio, size // 2, lengths)
    if config.padding == "zeros":
        return stft.pad(audio, size // 2, size // 2)
    if config.padding == "same":
        if lengths is None:
            return stft.pad(audio, *same_padding(audio.shape[-1], config))
        # Each clip has its own left padding: it comes in by a right shift of that many samples.
        return stft.shift(stft.pad(audio, 0, size), same_padding(lengths, config)[0])
    return audio


def same_padding(num_samples: int | Int[Array, "*B"], config: FrontendConfig) -> tuple:
    """Zeros before and after that make ceil(N / hop) frames; the odd one goes after."""
    hop = config.hop_length
    missing = (-(-num_samples // hop) - 1) * hop + config.fft_length - num_samples
    missing = max(missing, 0) if isinstance(missing, int) else jnp.maximum(missing, 0)
    return missing // 2, missing - missing // 2
