"""CREPE: the pitch of one voice, from the waveform.

J. W. Kim, J. Salamon, P. Li, J. P. Bello, "CREPE: A Convolutional Representation for Pitch
Estimation", ICASSP 2018. Five sizes share this file and differ in `CrepeConfig.channels` only.
The network is the published one; how its convolutions are computed is told in `convolution.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.config import FrontendConfig
from musicjax.audio.framing import StreamSpec, num_frames, padded_signal
from musicjax.audio.frontend import spectrogram
from musicjax.audio.presets import preset
from musicjax.errors import AudioError, ConfigError
from musicjax.models.crepe import convolution, stream
from musicjax.nn import dropout
from musicjax.notes import Notes
from musicjax.notes.contour import Contour
from musicjax.types import Key, Policy

# Pitch bins: 360 of 20 cents, the first 1997.38 cents above 10 Hz (31.70 Hz).
BINS, BIN_CENTS, FIRST_CENTS, REFERENCE_HZ = 360, 20.0, 1997.3794084376191, 10.0
WIDTHS = (32, 4, 4, 4, 8, 16)  # channels of each block, times 4 (tiny) to 32 (full)
OURS = (96, 32, 64, 64, 64, 128)  # channels of the form that this project trains
LENGTHS = (256, 128, 64, 32, 16, 8)  # positions that each block's convolution puts out
ROWS = 128  # frames that a CPU works off together: their activations stay near the cache
_QUIET_DB = -120.0

Form = Literal["auto", "shared", "transforms", "direct", "halves"]


@dataclass(frozen=True)
class CrepeConfig:
    """Everything that distinguishes one CREPE from another. Hashable, static."""

    frontend: FrontendConfig = replace(preset("crepe_torch"), num_bins=1024)  # noqa: RUF009
    channels: tuple[int, ...] = (1024, 128, 128, 128, 256, 512)  # of the six blocks
    norm_epsilon: float = 1e-3
    norm_momentum: float = 0.99
    dropout: float = 0.25
    target_cents: float = 25.0  # standard deviation of the label around the true pitch
    unvoiced_weight: float = 0.0  # of frames without pitch in the loss; published: never seen
    frozen: int = 0  # so many blocks, from the first, do not learn: a step is several times as fast
    voicing: float = 0.3  # least activation of a frame with a pitch, unless the decoder is told
    # How convolutions are computed; all forms are equal to rounding. auto: "direct" on a GPU, on a
    # CPU "shared", which computes the first layer once for overlapping frames, or "transforms",
    # which does not, where the hop allows no sharing. "halves" alone is rounded to bfloat16: for
    # training on CPUs with matrix units for it, where it is several times as fast.
    form: Form = "auto"
    policy: Policy = Policy()  # noqa: RUF009 - frozen


def get_config(variant: str = "full") -> CrepeConfig:
    """The config of a size: tiny, small, medium, large or full (also called base).

    `ours` is the one that this project trains: between tiny and small, its middle layers wider and
    its first narrower.
    """
    if variant == "ours":
        return CrepeConfig(channels=OURS, dropout=0.0, norm_momentum=0.9, unvoiced_weight=1.0)
    multipliers = {"tiny": 4, "small": 8, "medium": 16, "large": 24, "full": 32, "base": 32}
    if variant not in multipliers:
        raise ConfigError(
            f"crepe has no variant {variant!r}; choose one of ours, {', '.join(multipliers)}."
        )
    return CrepeConfig(channels=tuple(multipliers[variant] * width for width in WIDTHS))


def cents_to_hz(cents: Any) -> Any:
    """Hz of cents above 10 Hz."""
    return REFERENCE_HZ * 2.0 ** (cents / 1200.0)


def bin_cents() -> Float[np.ndarray, "360"]:
    """Cents above 10 Hz of every pitch bin."""
    return FIRST_CENTS + BIN_CENTS * np.arange(BINS)


class Block(nnx.Module):
    """Convolution, ReLU, batch normalisation, maximum of pairs, dropout; after the convolution."""

    def __init__(
        self, taps: int, channels_in: int, channels: int, config: CrepeConfig, *, rngs: nnx.Rngs
    ):
        # Keras' default, as the published training has it.
        make = nnx.initializers.glorot_uniform(in_axis=(0, 1), out_axis=(0, 2))
        shape = (taps, channels_in, channels)
        self.kernel = nnx.Param(make(rngs.params(), shape, config.policy.param))
        self.bias = nnx.Param(jnp.zeros((channels,), config.policy.param))
        self.norm = nnx.BatchNorm(
            channels,
            momentum=config.norm_momentum,
            epsilon=config.norm_epsilon,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.rate = config.dropout

    def finish(
        self,
        x: Float[Array, "positions R C"],
        *,
        mask: Bool[Array, "R"] | None,
        train: bool,
        key: Key | None,
    ) -> Float[Array, "half R C"]:
        """What follows the convolution and its bias."""
        dtype = x.dtype
        x = jax.nn.relu(x)
        seen = None if mask is None else mask[None, :, None]
        x = self.norm(x, use_running_average=not train, mask=seen if train else None)
        x = x.astype(dtype).reshape(x.shape[0] // 2, 2, *x.shape[1:])
        # Not max: its gradient goes to what equals the maximum, and what XLA computes again for the
        # backward pass may differ from it in the last bit.
        x = jnp.where(x[:, 0] >= x[:, 1], x[:, 0], x[:, 1])
        return dropout(x, self.rate, key if train else None)


class Crepe(nnx.Module):
    """The network: frames of 1024 samples to one logit for each of 360 pitches."""

    context_s: ClassVar[float] = 0.04  # a frame hears 32 ms to either side

    def __init__(self, config: CrepeConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels = (1, *config.channels)
        taps = (convolution.FIRST_TAPS, *[convolution.TAPS] * 5)
        self.blocks = nnx.List(
            [
                Block(t, a, b, config, rngs=rngs)
                for t, a, b in zip(taps, channels, channels[1:], strict=False)
            ]
        )
        self.classifier = nnx.Linear(
            LENGTHS[-1] // 2 * channels[-1],
            BINS,
            dtype=config.policy.compute,
            param_dtype=config.policy.param,
            rngs=rngs,
        )

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T 360"]:
        """Logits of frames that are standardised already (`spectrogram` does).

        mask is True at frames that exist: others do not count in batch statistics. With `train`,
        these are used and updated, and `key` drives dropout.
        """
        rows = features.reshape(-1, features.shape[-1])
        if mask is not None:
            rows = jnp.where(mask.reshape(-1, 1), rows, 0.0)
        seen = None if mask is None else mask.reshape(-1)
        with _precision(self.config):
            raw = self._first(rows.astype(self.config.policy.compute))
            logits = self._rest(raw, self._layers(), mask=seen, train=train, key=key)
        return logits.reshape(*features.shape[:2], BINS)

    def _first(self, rows: Float[Array, "R samples"]) -> Float[Array, "positions R C"]:
        """The first convolution with its bias, on frames one by one."""
        block = self.blocks[0]
        kernel = block.kernel[...].astype(rows.dtype)

        def product(rows: Array) -> Array:
            form = "first_layer_halves" if self._halves else "first_layer_of_frames"
            return getattr(convolution, form)(rows, kernel[:, 0]).astype(rows.dtype)

        def direct(rows: Array) -> Array:
            return convolution.convolve_directly(rows.T[:, :, None], kernel, convolution.STRIDE)

        return self._choose(product, direct)(rows) + block.bias[...].astype(rows.dtype)

    @property
    def _halves(self) -> bool:
        return self.config.form == "halves"

    def _choose(self, on_cpu: Any, elsewhere: Any) -> Any:
        """The form that the config names, or the better one of the platform."""
        if self.config.form == "auto":
            return lambda x: jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere)
        return elsewhere if self.config.form == "direct" else on_cpu

    def _layers(self) -> list[Any]:
        """The convolutions of blocks 2 to 6 as functions; what depends on weights alone is done."""
        layers = []
        for block, length in zip(self.blocks[1:], LENGTHS[1:], strict=True):
            kernel = block.kernel[...]

            def transformed(x: Array, kernel: Array = kernel, length: int = length) -> Array:
                if self._halves:
                    return convolution.convolve_halves(x, kernel).astype(x.dtype)
                return convolution.convolve(x, convolution.kernel_products(kernel, length))

            def direct(x: Array, kernel: Array = kernel) -> Array:
                return convolution.convolve_directly(x, kernel)

            layers.append(self._choose(transformed, direct))
        return layers

    def _rest(
        self,
        raw: Float[Array, "positions R C"],
        layers: list[Any],
        *,
        mask: Bool[Array, "R"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "R 360"]:
        """All that follows the first convolution."""
        keys = [None] * 6 if key is None else jax.random.split(key, 6)
        x = raw
        for number, (block, own) in enumerate(zip(self.blocks, keys, strict=True)):
            learns = train and number >= self.config.frozen
            if number:
                x = layers[number - 1](x) + block.bias[...].astype(x.dtype)
            x = block.finish(x, mask=mask, train=learns, key=own)
            x = x if learns or not train else jax.lax.stop_gradient(x)
        flat = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
        return self.classifier(flat).astype(jnp.float32)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T ..."]]:
        """What was heard, from samples at 16 kHz: the input of `decode`. float32.

        pitch (B, T, 360): how much each pitch is present, 0 to 1. level_db (B, T): deviation of
        the frame's samples, in dB of full scale, at least -120; the network itself hears every
        frame at the same level. Frames are independent, so `frames` changes nothing.
        """
        del frames
        frontend = self.config.frontend
        signal = padded_signal(audio, frontend)
        total = num_frames(audio.shape[-1], frontend)
        with _precision(self.config):
            sharing = convolution.shares_hops(frontend.hop_length)
            on_cpu = (
                self._heard_shared
                if sharing and self.config.form not in ("transforms", "halves")
                else None
            )
            block_by_block = self._in_blocks(on_cpu or self._heard_frames, total)
            return self._choose(block_by_block, lambda s: self._heard_frames(s, total))(signal)

    def _in_blocks(self, heard: Any, total: int) -> Any:
        """Frames some at a time, so that what lies between the layers stays near the cache."""
        hop, size = self.config.frontend.hop_length, self.config.frontend.fft_length

        def run(signal: Float[Array, "B N"]) -> dict[str, Array]:
            at_once = max(1, min(total, ROWS // signal.shape[0]))
            count = -(-total // at_once)
            span = (at_once - 1) * hop + size
            short = (count - 1) * at_once * hop + span - signal.shape[1]
            signal = jnp.pad(signal, ((0, 0), (0, max(short, 0))))
            layers = [
                (block.kernel[...], n)
                for block, n in zip(self.blocks[1:], LENGTHS[1:], strict=True)
            ]
            products = [convolution.kernel_products(kernel, n) for kernel, n in layers]

            def one(index: Array) -> dict[str, Array]:
                part = jax.lax.dynamic_slice_in_dim(signal, index * at_once * hop, span, 1)
                return heard(part, at_once, products)

            found = jax.lax.map(one, jnp.arange(count))  # (count, B, at_once, ...)
            return {
                name: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :total]
                for name, x in found.items()
            }

        return run

    def _heard_frames(
        self, signal: Float[Array, "B N"], count: int, products: list[Array] | None = None
    ) -> dict[str, Array]:
        """Frames cut out, standardised and heard one by one."""
        frames = _cut(signal, self.config.frontend, count)
        mean, deviation = _moments(frames, self.config.frontend)
        rows = ((frames - mean) / self._divisor(deviation)).reshape(-1, frames.shape[-1])
        raw = self._first(rows.astype(self.config.policy.compute))
        return self._told(raw, deviation, products)

    def _heard_shared(
        self, signal: Float[Array, "B N"], count: int, products: list[Array] | None = None
    ) -> dict[str, Array]:
        """The first convolution once for all frames of the signal, which are standardised after.

        Subtracting a frame's mean subtracts it times the sum of the taps that lie in the frame.
        A constant offset would be a large number to subtract from another: it goes first.
        """
        block, hop = self.blocks[0], self.config.frontend.hop_length
        kernel = block.kernel[...][:, 0].astype(jnp.float32)
        signal = signal - signal.mean(axis=-1, keepdims=True)
        mean, deviation = _moments(_cut(signal, self.config.frontend, count), self.config.frontend)
        raw = convolution.first_layer(signal, kernel, hop, count)
        sums = convolution.tap_sums(kernel)[:, None, None]
        raw = (raw - mean * sums) / self._divisor(deviation) + block.bias[...]
        raw = raw.reshape(raw.shape[0], -1, raw.shape[-1])
        return self._told(raw.astype(self.config.policy.compute), deviation, products)

    # A stream: `musicjax.infer.stream.StreamingModel` ---------------------------------------------

    @property
    def stream_spec(self) -> StreamSpec:
        """Rate, hop and look-ahead of a stream."""
        return stream.stream_spec(self.config.frontend)

    def stream_start(self, batch: int) -> dict[str, Array]:
        """The state before the first sample: `signal` (B, K), the last samples."""
        kept = stream.kept_samples(self.stream_spec, self.config.frontend.fft_length)
        return {"signal": jnp.zeros((batch, kept), jnp.float32)}

    def stream_step(
        self, state: dict[str, Array], samples: Float[Array, "B N"]
    ) -> tuple[dict[str, Array], dict[str, Float[Array, "B 1 ..."]]]:
        """The next hop of samples: the new state, and what `activations` gives for one frame."""
        size = self.config.frontend.fft_length
        kept, window = stream.next_window(state["signal"], samples, self.stream_spec, size)
        with _precision(self.config):
            return {"signal": kept}, self._heard_frames(window, 1)

    def stream_end(self, state: dict[str, Array]) -> dict[str, Array]:
        """A recording ends in zeros here too: nothing is to be told."""
        return state

    def stream_reader(self, **options: Any) -> stream.Reader:
        """A reader of one stream's pitch: voicing, silence_db, min_hz, max_hz as `decode` has."""
        return stream.Reader(self.config, self.stream_spec, options)

    def _divisor(self, deviation: Float[Array, "B T 1"]) -> Float[Array, "B T 1"]:
        return jnp.maximum(deviation, self.config.frontend.standardise_floor)

    def _told(
        self, raw: Array, deviation: Float[Array, "B T 1"], products: list[Array] | None
    ) -> dict[str, Array]:
        if products is None:
            layers = self._layers()
        else:
            layers = [lambda x, p=p: convolution.convolve(x, p) for p in products]
        logits = self._rest(raw, layers)
        level = 20 * jnp.log10(jnp.maximum(deviation[..., 0], 10 ** (_QUIET_DB / 20)))
        pitch = jax.nn.sigmoid(logits).reshape(*level.shape, BINS)
        return {"pitch": pitch, "level_db": level}


def _precision(config: CrepeConfig) -> Any:
    wanted = config.policy.matmul_precision
    return jax.default_matmul_precision(None if wanted == "default" else wanted)


def _cut(signal: Float[Array, "B N"], frontend: FrontendConfig, count: int) -> Array:
    index = frontend.hop_length * np.arange(count)[:, None] + np.arange(frontend.fft_length)
    return signal[:, index]


def _moments(frames: Array, frontend: FrontendConfig) -> tuple[Array, Array]:
    """Mean and deviation (B, T, 1) of each frame, as the front-end's `standardise` counts them."""
    mean = frames.mean(axis=-1, keepdims=True)
    degrees = frames.shape[-1] - int(frontend.standardise == "frame_unbiased")
    variance = ((frames - mean) ** 2).sum(axis=-1, keepdims=True) / degrees
    return mean, jnp.sqrt(variance)


# Labels and loss ------------------------------------------------------------------------------


def targets(
    truth: Notes | Contour, start_s: float, num_samples: int, config: CrepeConfig
) -> dict[str, np.ndarray]:
    """The pitch of each frame of a clip: f0_cents (T,) above 10 Hz.

    It is 0 where nothing sounds, and -1 where a contour's confidence is 0: such frames count
    neither way. A frame's pitch is that at its middle; of several notes, that of the last begun.
    """
    frontend = config.frontend
    count = num_frames(num_samples, frontend)
    middle = 0.0 if frontend.padding == "zeros" else frontend.fft_length / 2
    time_s = start_s + (np.arange(count) * frontend.hop_length + middle) / frontend.sample_rate
    cents = np.zeros(count, np.float32)
    if isinstance(truth, Contour):
        nearest = np.rint((time_s - truth.time_s[0]) / truth.hop_s).astype(int)
        nearest = np.clip(nearest, 0, len(truth) - 1)
        hz, known = truth.f0_hz[nearest], truth.confidence[nearest] > 0
        found = 1200 * np.log2(np.maximum(hz, REFERENCE_HZ) / REFERENCE_HZ)
        return {"f0_cents": np.where(known, found, -1.0).astype(np.float32)}
    notes = truth[~truth.is_drum].sorted()
    first = np.searchsorted(time_s, notes.onset_s)
    last = np.searchsorted(time_s, notes.offset_s)
    a4 = 1200 * np.log2(440.0 / REFERENCE_HZ)
    for begin, end, pitch in zip(first, last, notes.pitch, strict=True):
        cents[begin:end] = a4 + 100.0 * (float(pitch) - 69)
    return {"f0_cents": cents}


def loss(
    model: Crepe, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean binary cross-entropy over pitches and voiced frames. float32.

    batch: audio (B, N) float32 in -1..1 or int16, f0_cents (B, T) from `targets`, and optionally
    mask (B, T), True at frames that count. The label of a bin is exp(-d^2 / (2 * 25^2)), d cents
    from the true pitch. Frames without pitch count `config.unvoiced_weight`, their labels zero;
    frames of -1 do not count.
    """
    config, truth = model.config, batch["f0_cents"].astype(jnp.float32)
    features = spectrogram(batch["audio"], config.frontend)
    if truth.shape != features.shape[:2]:
        raise AudioError(
            f"f0_cents has shape {truth.shape} but {batch['audio'].shape[-1]} samples give "
            f"{features.shape[:2]}; make it with targets(notes, start_s, num_samples, config)."
        )
    mask = batch.get("mask")
    logits = model(features, mask=mask, train=train, key=key)
    voiced = truth > 0
    distance = (jnp.asarray(bin_cents(), jnp.float32) - truth[..., None]) / config.target_cents
    label = jnp.where(voiced[..., None], jnp.exp(-0.5 * distance**2), 0.0)
    entropy = label * jax.nn.softplus(-logits) + (1 - label) * jax.nn.softplus(logits)
    weight = jnp.where(voiced, 1.0, jnp.where(truth < 0, 0.0, config.unvoiced_weight))
    weight = weight if mask is None else jnp.where(mask, weight, 0.0)
    total = (entropy.mean(axis=-1) * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    return total, {"pitch": total}
