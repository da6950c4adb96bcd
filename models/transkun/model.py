"""Transkun V2: piano notes and pedals as scored intervals, found by an exact search.

Y. Yan and Z. Duan, "Scoring Time Intervals Using Non-Hierarchical Transformer for Automatic Piano
Transcription", ISMIR 2024. A transformer over time and frequency gives every piano key and pedal
(a symbol) a vector at every frame; products of two such vectors score the intervals between them;
a semi-Markov field over intervals (`musicjax.decode.semicrf`) chooses the best that do not
overlap; and small networks on both ends of a chosen interval tell its velocity and its exact
times. The published network of the package transkun 2.0 is the tag `v2`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int16

from musicjax.audio.frontend import spectrogram
from musicjax.audio.stft import window
from musicjax.decode.semicrf import (
    ProductScores,
    best_intervals,
    log_partition,
    marginals,
)
from musicjax.errors import AudioError
from musicjax.models.transkun.config import TranskunConfig, label_room
from musicjax.models.transkun.events import EventReader
from musicjax.models.transkun.layers import (
    DownsamplingConvs,
    Positions,
    TimeFrequencyLayer,
    dense,
    product,
)
from musicjax.nn import dropout
from musicjax.types import Key, Policy

VELOCITIES = 128


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "decisions"],
    meta_fields=[],
)
@dataclass(frozen=True)
class HeardSegments:
    """Segments as the network heard them, before any interval is described.

    tokens, each of which stands for 8 frames of a symbol, stay where they were computed;
    `decisions` is what the host reads: where the best interval from each frame ends, and which
    single frames are intervals (see `best_intervals`).
    """

    tokens: Float[Array, "B S T2 D"]
    decisions: tuple[Int16[Array, "BS T"], Bool[Array, "BS T"]]


class Prepared(NamedTuple):
    """What hearing needs of the weights alone, the same for all segments of one length.

    positions  (T2 + 1, F2 + 1 + S, D): of what is heard at each time, and of the symbols
    scorer     (D, 8, 2 D + 1): from a token to what scores intervals at each of its frames. The
               transposed convolution and the scorer are linear, so that they are one map.
    offset     (2 D + 1,): added to what it gives
    """

    positions: Float[Array, "times bins D"]
    scorer: Float[Array, "D frames wide"]
    offset: Float[Array, "wide"]


class LearnedWindows(nnx.Module):
    """Gaussian windows with learned centres and widths, as the logits of their place in 0..1."""

    def __init__(self, count: int) -> None:
        places = np.arange(1, count + 1) / (count + 1)
        self.width = nnx.Param(jnp.full((count,), -1.0))
        self.centre = nnx.Param(jnp.asarray(np.log(places / (1 - places)), jnp.float32))

    def __call__(self, length: int) -> Float[Array, "K W"]:
        """The windows at a length in samples."""
        centre = length * jax.nn.sigmoid(self.centre[...].astype(jnp.float32))
        width = length / 2 * jax.nn.sigmoid(self.width[...].astype(jnp.float32))
        offset = (jnp.arange(length) - centre[:, None]) / width[:, None]
        return jnp.exp(-0.5 * offset**2)


class EndpointHead(nnx.Module):
    """Two dense layers on what is heard at both ends of an interval, and their product."""

    def __init__(self, config: TranskunConfig, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = dense(3 * config.width, config.head_units, config.policy, rngs=rngs)
        self.out = dense(config.head_units, outputs, config.policy, rngs=rngs)
        self.rate = config.head_dropout

    def __call__(self, ends: Float[Array, "*B K wide"], key: Key | None) -> Float[Array, "*B K C"]:
        hidden = jax.nn.gelu(self.hidden(ends), approximate=False)
        return self.out(dropout(hidden, self.rate, key)).astype(jnp.float32)


class Transkun(nnx.Module):
    """Yan and Duan 2024. Protocol of the zoo: `__call__`, `activations`; of segments: `hear`,
    `describe`, `reader`.
    """

    def __init__(self, config: TranskunConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, policy = config.width, config.policy
        self.windows = LearnedWindows(config.extra_windows)
        self.convs = DownsamplingConvs(
            1 + config.extra_windows, config.channels, config.position_spread, policy, rngs=rngs
        )
        self.heard_positions = Positions(2, width, config.position_spread, rngs=rngs)
        self.symbol_positions = Positions(2, width, config.position_spread, rngs=rngs)
        self.layers = nnx.List(
            TimeFrequencyLayer(config, rngs=rngs) for _ in range(config.num_layers)
        )
        # A transposed convolution over time whose stride is its width: each token gives 8 frames.
        per_token = DownsamplingConvs.FRAMES * width
        self.upsample = dense(width, per_token, policy, bias=False, rngs=rngs)
        self.upsample_bias = nnx.Param(jnp.zeros((width,), policy.param))
        self.scorer = dense(width, 2 * width + 1, Policy(policy.param_dtype), rngs=rngs)
        self.velocity_head = EndpointHead(config, VELOCITIES, rngs=rngs)
        self.times_head = EndpointHead(config, 4, rngs=rngs)

    # From sound to a vector for each frame and symbol ------------------------------------------

    def features(
        self, audio: Float[Array, "B N"] | Float[Array, "B C N"], frames: Array | None = None
    ) -> Float[Array, "B T F K"]:
        """Log-mel spectrograms of a clip through each window, its gain normalised.

        Channels share one gain, and their powers are averaged: nothing cancels between them.
        """
        config = self.config.frontend
        if audio.ndim == 2:
            audio = audio[:, None]
        lengths = None
        if frames is not None:
            lengths = jnp.broadcast_to(frames[:, None] * config.hop_length, audio.shape[:2])
        linear = replace(config, standardise="all_channels", log="none", mean=0.0, scale=1.0)
        hann = jnp.asarray(window(config.window, config.window_length, config.fft_length))
        windows = jnp.concatenate([hann[None], self.windows(config.fft_length)])
        power = spectrogram(audio, linear, lengths=lengths, window=windows).mean(axis=1)
        level = (jnp.log(power + config.log_floor) - config.mean) / config.scale
        return level.transpose(0, 2, 3, 1)

    def __call__(
        self,
        features: Float[Array, "B T F K"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T S D"]:
        """What is heard of each symbol at each frame, float32.

        mask is True at frames that exist, the first ones; what lies behind them changes nothing.
        """
        del key  # the published network has dropout in its heads only
        return self.encode(features, mask=mask, train=train).swapaxes(1, 2)

    def encode(
        self,
        features: Float[Array, "B T F K"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B S T D"]:
        """As `__call__`, symbols before frames: the order in which intervals are scored."""
        batch, frames = features.shape[:2]
        tokens = self.listen(features, mask=mask, train=train)
        with _precision(self.config):
            x = product(tokens, self.upsample.kernel, self.config.policy)
        x = x.reshape(batch, self.config.num_symbols, -1, self.config.width)[:, :, :frames]
        return x + self.upsample_bias[...].astype(jnp.float32)

    def positions(self, times: int, bins: int) -> Float[Array, "times wide D"]:
        """Embeddings of all places: `bins` of what is heard at each time, then the symbols."""
        moments = jnp.arange(times)
        symbols = jnp.asarray(self.config.symbol_numbers)
        heard = self.heard_positions(moments, jnp.arange(bins))
        return jnp.concatenate([heard, self.symbol_positions(moments, symbols)], axis=1)

    def listen(
        self,
        features: Float[Array, "B T F K"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        positions: Float[Array, "times wide D"] | None = None,
    ) -> Float[Array, "B S T2 D"]:
        """What is heard of each symbol in each 8 frames, float32; positions: as of that method."""
        config, batch = self.config, features.shape[0]
        with _precision(config):
            tokens, token_mask = self.convs(features, mask)
            # One token before the others on both axes, to gather what is common to all.
            tokens = jnp.pad(tokens, ((0, 0), (1, 0), (1, 0), (0, 0)))
            if token_mask is not None:
                token_mask = jnp.pad(token_mask, ((0, 0), (1, 0)), constant_values=True)
            bins = tokens.shape[2]
            if positions is None:
                positions = self.positions(tokens.shape[1], bins)
            heard = tokens.astype(jnp.float32) + positions[:, :bins]
            symbols = jnp.broadcast_to(
                positions[:, bins:], (batch, tokens.shape[1], config.num_symbols, config.width)
            )
            x = jnp.concatenate([heard, symbols], axis=2)
            for number, layer in enumerate(self.layers, 1):
                # Only the symbols are read at the end.
                first = bins if number == len(self.layers) else 0
                run = partial(layer, first=first, train=train)
                x = (jax.checkpoint(run) if train and config.remat else run)(x, token_mask)
        return x[:, 1:].swapaxes(1, 2)

    def scores(self, context: Float[Array, "B S T D"]) -> ProductScores:
        """Scores of all intervals of B * S sequences."""
        with jax.default_matmul_precision("highest"):
            mapped = self.scorer(context).astype(jnp.float32)
        mapped = mapped.reshape(-1, *mapped.shape[2:])
        end, start, single = jnp.split(mapped, (self.config.width, 2 * self.config.width), axis=-1)
        return ProductScores(end, start, single[..., 0])

    hear_stereo = True

    # Inference in segments ---------------------------------------------------------------------

    @property
    def segment_samples(self) -> int:
        """Samples of one segment."""
        return math.ceil(self.config.segment_s * self.config.frontend.sample_rate)

    @property
    def segment_hop(self) -> int:
        """Samples from one segment to the next: a whole number of frames."""
        hop = self.config.frontend.hop_length
        return math.ceil(self.config.segment_hop_s * self.config.frontend.sample_rate / hop) * hop

    @property
    def segment_lead(self) -> int:
        """Samples of silence before a recording and after it."""
        spare_s = self.config.segment_s - self.config.segment_hop_s
        return math.ceil(spare_s * self.config.frontend.sample_rate)

    def prepare(self) -> Prepared:
        """What `hear` would otherwise compute anew for every segment."""
        silence = jax.ShapeDtypeStruct((1, self.segment_samples), jnp.float32)
        tokens = jax.eval_shape(lambda audio: self.convs(self.features(audio), None)[0], silence)
        width = self.config.width
        with jax.default_matmul_precision("highest"):
            scorer = self.scorer.kernel[...].astype(jnp.float32)
            upsample = self.upsample.kernel[...].astype(jnp.float32).reshape(width, -1, width)
            offset = self.scorer(self.upsample_bias[...].astype(jnp.float32))
            return Prepared(
                self.positions(tokens.shape[1] + 1, tokens.shape[2] + 1), upsample @ scorer, offset
            )

    def hear(
        self,
        audio: Float[Array, "B N"] | Float[Array, "B C N"],
        prepared: Prepared | None = None,
    ) -> HeardSegments:
        """Whole segments, and the best intervals from every frame of them on."""
        prepared = self.prepare() if prepared is None else prepared
        features = self.features(audio)
        tokens = self.listen(features, positions=prepared.positions)
        best = best_intervals(self._scores_of(tokens, features.shape[1], prepared))
        return HeardSegments(tokens, (best.next_end.astype(jnp.int16), best.single))

    def _scores_of(
        self, tokens: Float[Array, "B S T2 D"], frames: int, prepared: Prepared
    ) -> ProductScores:
        """As `scores`, without the contexts."""
        width, rows = self.config.width, tokens.shape[0] * tokens.shape[1]
        parts = jnp.split(prepared.scorer, (width, 2 * width), axis=-1)
        offsets = jnp.split(prepared.offset, (width, 2 * width))
        flat = tokens.reshape(-1, width)
        with jax.default_matmul_precision("highest"):
            end, start, single = (
                (flat @ part.reshape(width, -1)).reshape(rows, -1, len(offset))[:, :frames] + offset
                for part, offset in zip(parts, offsets, strict=True)
            )
        return ProductScores(end, start, single[..., 0])

    def describe(
        self,
        heard: HeardSegments,
        item: Int[Array, ""],
        symbol: Int[Array, "K"],
        start: Int[Array, "K"],
        end: Int[Array, "K"],
    ) -> dict[str, Array]:
        """Velocity and exact times of intervals of one segment.

        velocity (K,): the likeliest. sureness (K,): its probability, which at a piano's notes is
        two to three times that at other sounds. shift (K, 2): how far onset and offset lie behind
        their frames, -0.5..0.5 frames. inside (K, 2): log-odds that onset and offset are inside
        the segment rather than at its border.
        """
        tokens = jax.lax.dynamic_index_in_dim(heard.tokens, item, keepdims=False)

        def context(frame: Array) -> Array:
            token, place = jnp.divmod(frame, DownsamplingConvs.FRAMES)
            frames = product(tokens[symbol, token], self.upsample.kernel, self.config.policy)
            frames = frames.reshape(len(frame), -1, self.config.width)
            found = jnp.take_along_axis(frames, place[:, None, None], axis=1)[:, 0]
            return found + self.upsample_bias[...].astype(jnp.float32)

        velocity, times = self._ends(context(start), context(end))
        mean = continuous_bernoulli_mean(times[:, :2])
        return {
            "velocity": jnp.argmax(velocity, axis=-1).astype(jnp.int32),
            "sureness": jax.nn.softmax(velocity).max(axis=-1),
            "shift": jnp.clip((mean - 0.5) / SHIFT_SCALE, -0.5, 0.5),
            "inside": times[:, 2:],
        }

    def _ends(
        self,
        start: Float[Array, "*B K D"],
        end: Float[Array, "*B K D"],
        key: Key | None = None,
    ) -> tuple[Array, Array]:
        """Logits of velocity and of times from the contexts at both ends."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        ends = jnp.concatenate([start, end, start * end], axis=-1)
        return self.velocity_head(ends, keys[0]), self.times_head(ends, keys[1])

    def reader(self) -> EventReader:
        """What follows the segments of one recording, on the host."""
        return EventReader(self.config, self.segment_samples, self.segment_hop, self.segment_lead)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T ..."]]:
        """How probable it is that notes start, sound and end at each frame, over all transcripts.

        audio is heard as one segment, so it should be no longer than `config.segment_s`. frames:
        how many frames of each item are sound (all if None). Returns onset, offset and frame
        (B, T, P) and pedal (B, T, pedals), 0..1, float32. Exact transcripts come from `hear`.
        """
        features = self.features(audio, frames)
        mask, lengths = None, None
        if frames is not None:
            mask = jnp.arange(features.shape[1]) <= frames[:, None]
            lengths = jnp.repeat(frames + 1, self.config.num_symbols)
        found = marginals(self.scores(self.encode(features, mask=mask)), lengths)

        def roll(values: Array) -> Array:
            split = values.reshape(features.shape[0], self.config.num_symbols, -1)
            return jnp.clip(split.swapaxes(1, 2), 0.0, 1.0)

        pedals = len(self.config.pedals)
        inside = roll(found.inside + found.single)
        return {
            "onset": roll(found.start + found.single)[..., pedals:],
            "offset": roll(found.end + found.single)[..., pedals:],
            "frame": inside[..., pedals:],
            "pedal": inside[..., :pedals],
        }


def _precision(config: TranskunConfig) -> Any:
    wanted = config.policy.matmul_precision
    return jax.default_matmul_precision(None if wanted == "default" else wanted)


# Times inside a frame --------------------------------------------------------------------------

# A shift of -0.5..0.5 frames is learned as 0.99 of it above 0.5, inside the distribution's 0..1.
SHIFT_SCALE = 0.99


def continuous_bernoulli_mean(logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Mean of the continuous Bernoulli distribution (Loaiza-Ganem and Cunningham 2019)."""
    small = jnp.abs(logits) < 0.1
    safe = jnp.where(small, 1.0, logits)
    return jnp.where(
        small, 0.5 + logits / 12 - logits**3 / 720, 1 / (1 - jnp.exp(-safe)) - 1 / safe
    )


def continuous_bernoulli_log_prob(
    logits: Float[Array, "*B"], value: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """Log density of values in 0..1 under the continuous Bernoulli distribution."""
    size = jnp.abs(logits)
    small = size < 0.1
    safe = jnp.where(small, 1.0, size)
    constant = jnp.where(small, math.log(2.0) + size**2 / 12, jnp.log(safe / jnp.tanh(safe / 2)))
    return value * logits - jax.nn.softplus(logits) + constant


# Loss ------------------------------------------------------------------------------------------


def loss(
    model: Transkun, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Negative log-likelihood of the true events, in nats per second of sound, and its parts.

    batch: audio (B, N) float32 in -1..1 or int16, and the labels of `targets` stacked.
    intervals: of all symbols' intervals under the field. velocity, times and inside: of each true
    interval's attributes. float32.
    """
    config, audio = model.config, batch["audio"]
    if audio.dtype == jnp.int16:
        audio = audio.astype(jnp.float32) / 32768.0
    count, rate = audio.shape[-1], config.frontend.sample_rate
    if batch["symbol"].shape != (len(audio), label_room(count, config)):
        raise AudioError(
            f"labels have shape {batch['symbol'].shape} but {audio.shape} samples have room for "
            f"{(len(audio), label_room(count, config))}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    context = model.encode(model.features(audio), train=train)
    scores = model.scores(context)
    exists = batch["exists"].astype(bool)
    symbol, start, end = batch["symbol"], batch["start"], batch["end"]
    item = jnp.arange(len(audio))[:, None]
    of_true = scores.at(
        (item * config.num_symbols + symbol).ravel(), start.ravel(), end.ravel()
    ).reshape(symbol.shape)

    def per_second(values: Array) -> Array:
        where = exists.reshape(exists.shape + (1,) * (values.ndim - 2))
        return jnp.where(where, values, 0.0).sum() * rate / (count * len(audio))

    velocity, times = model._ends(
        context[item, symbol, start], context[item, symbol, end], key if train else None
    )
    of_velocity = jnp.take_along_axis(
        jax.nn.log_softmax(velocity), batch["velocity"][..., None], axis=-1
    )
    of_shift = continuous_bernoulli_log_prob(times[..., :2], 0.5 + SHIFT_SCALE * batch["shift"])
    inside = batch["inside"].astype(jnp.float32)
    of_inside = inside * times[..., 2:] - jax.nn.softplus(times[..., 2:])
    partition = log_partition(scores).sum() * rate / (count * len(audio))
    parts = {
        "intervals": partition - per_second(of_true),
        "velocity": -per_second(of_velocity),
        "times": -per_second(of_shift),
        "inside": -per_second(of_inside),
    }
    return sum(parts.values(), jnp.zeros(())), parts
