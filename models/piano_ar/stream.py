"""The piano transcriber hop by hop: each frame is computed once, from what was kept of the last.

What is kept (`stream_start`): the last samples, enough for one window of the STFT; of each of the
convolutions the two frames that it has heard; the memory of the LSTM and the states that were told
last. A step adds one hop of samples and gives the frame that this hop completed.
"""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from musicjax.audio.framing import StreamSpec
from musicjax.audio.frontend import FrontendConfig, spectrogram
from musicjax.errors import ConfigError
from musicjax.models.piano_ar.config import PianoARConfig

StreamState = dict[str, Any]

UNKNOWN = 1 << 30  # frames of a sound that has not ended
_NEAR = 8  # frames from an end of the sound at which it can be mirrored into a window


def stream_spec(config: PianoARConfig) -> StreamSpec:
    """Rate, hop and look-ahead: half a window, and a frame for each convolution that hears ahead.

    Raises ConfigError where the front-end needs the whole recording.
    """
    frontend = config.frontend
    whole = frontend.drop_last_sample or not frontend.drop_last_frame or frontend.whole_hops
    if frontend.padding not in ("zeros", "reflect") or whole:
        raise ConfigError(
            "a stream needs a front-end with as many frames as hops, centred: padding zeros or "
            f"reflect and drop_last_frame; this one has {frontend}."
        )
    if frontend.dynamic_range is not None or frontend.relative_to_max:
        raise ConfigError("a stream cannot know the loudest moment of a recording: dynamic_range.")
    ahead = frontend.fft_length // 2 + sum(config.conv_ahead) * frontend.hop_length
    return StreamSpec(frontend.sample_rate, frontend.hop_length, ahead)


def feature_delay(frontend: FrontendConfig) -> int:
    """Steps until the first frame of the spectrogram."""
    return math.ceil(frontend.fft_length // 2 / frontend.hop_length) - 1


def start_signal(frontend: FrontendConfig, batch: int) -> StreamState:
    """The samples, the frame that the last step completed, and how many there will be."""
    size, hop = frontend.fft_length, frontend.hop_length
    kept = size + (-(size // 2)) % hop
    return {
        "signal": jnp.zeros((batch, kept), jnp.float32),
        "frame": jnp.asarray(-1 - feature_delay(frontend), jnp.int32),
        "count": jnp.asarray(UNKNOWN, jnp.int32),
    }


def next_features(
    state: StreamState, samples: Float[Array, "B N"], frontend: FrontendConfig
) -> tuple[StreamState, Float[Array, "B 1 F"]]:
    """A hop of samples more, and the frame of the spectrogram that they complete."""
    size = frontend.fft_length
    hop = frontend.hop_length
    signal = jnp.concatenate([state["signal"][:, hop:], samples.astype(jnp.float32)], axis=1)
    frame = state["frame"] + 1
    window = signal[:, :size]
    if frontend.padding == "reflect":
        window = jnp.take(window, _mirrored(frame, state["count"], frontend), axis=1)
    alone = replace(frontend, padding="none", drop_last_frame=False)
    return {**state, "signal": signal, "frame": frame}, spectrogram(window, alone)


def _mirrored(
    frame: Int[Array, ""], count: Int[Array, ""], frontend: FrontendConfig
) -> Int[Array, "size"]:
    """Which samples of a window stand at each place of it, near the ends of the sound."""
    hop, half = frontend.hop_length, frontend.fft_length // 2
    # Positions in a sound that is as long as this one, or long enough to make no difference.
    centre = jnp.minimum(frame, _NEAR) * hop
    last = centre + jnp.minimum(count - frame, _NEAR) * hop - 1
    period = jnp.maximum(2 * last, 1)
    folded = (centre - half + jnp.arange(frontend.fft_length)) % period
    source = jnp.where(folded > last, period - folded, folded)
    # The one sample before the window has weight zero: the first of a periodic window is.
    return jnp.clip(source - centre + half, 0, frontend.fft_length - 1)
