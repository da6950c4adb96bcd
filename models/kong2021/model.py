"""Piano transcription that regresses onset and offset times, with the sustain pedal.

Q. Kong, B. Li, X. Song, Y. Wan and Y. Wang, "High-Resolution Piano Transcription With Pedals by
Regressing Onset and Offset Times", IEEE/ACM TASLP 2021. Notes and pedal are two networks that share
the spectrogram only. Labels are in `labels.py`, decoding in `regression.py`; `card.md` tells where
this differs from the authors' code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.frontend import FrontendConfig, spectrogram
from musicjax.audio.presets import preset
from musicjax.errors import AudioError, ConfigError
from musicjax.nn import BatchNormReLU, BiGRU, Conv2D, bigrus, dropout, mask_frames
from musicjax.types import LOWEST_PITCH, NUM_PITCHES, Key, Policy

_XAVIER = nnx.initializers.xavier_uniform()
NOTE_HEADS = ("frame", "onset", "offset", "velocity")
PEDAL_HEADS = ("pedal_onset", "pedal_offset", "pedal_frame")


@dataclass(frozen=True)
class Kong2021Config:
    """Everything that distinguishes one form of the system from another. Hashable, static."""

    frontend: FrontendConfig = preset("kong")  # noqa: RUF009 - frozen
    min_pitch: int = LOWEST_PITCH
    num_pitches: int = NUM_PITCHES
    conv_channels: tuple[int, int, int, int] = (48, 64, 96, 128)
    fc_units: int = 768
    gru_units: int = 256  # per direction
    # The authors hand 0.01 to the norms of spectrogram and convolutions as epsilon, where they
    # meant momentum; the norm after the dense layer gets it as momentum. Weights depend on it.
    conv_epsilon: float = 1e-2
    conv_momentum: float = 0.9
    fc_epsilon: float = 1e-5
    fc_momentum: float = 0.99
    dropout: tuple[float, float] = (0.2, 0.5)  # after each pooling; after dense and recurrent
    # Labels: an onset is seen so far to both sides, in seconds (J = 5 frames, equation 3).
    reach_s: float = 0.05
    # Decoding, where the call does not say otherwise.
    onset_threshold: float = 0.3
    offset_threshold: float = 0.3
    frame_threshold: float = 0.1
    pedal_offset_threshold: float = 0.2
    pedal_frame_threshold: float = 0.5
    velocity_scale: float = 128.0
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    @property
    def frames_per_s(self) -> float:
        """Frames per second: 100 in the published form."""
        return self.frontend.frames_per_s


def get_config(variant: str = "base") -> Kong2021Config:
    """The config of a variant.

    base (also called maestro): the published networks, 34 million parameters. small: half as wide.
    tiny: a few channels and bins, for tests.
    """
    variants: dict[str, Callable[[], Kong2021Config]] = {
        "base": Kong2021Config,
        "maestro": Kong2021Config,
        "small": partial(
            Kong2021Config, conv_channels=(24, 32, 48, 64), fc_units=384, gru_units=128
        ),
        "tiny": partial(
            Kong2021Config,
            frontend=replace(preset("kong"), num_bins=48),
            conv_channels=(2, 2, 3, 4),
            fc_units=12,
            gru_units=6,
        ),
    }
    if variant not in variants:
        raise ConfigError(
            f"kong2021 has no variant {variant!r}; choose one of {', '.join(variants)}."
        )
    return variants[variant]()


@partial(jax.tree_util.register_dataclass, data_fields=[*NOTE_HEADS, *PEDAL_HEADS], meta_fields=[])
@dataclass(frozen=True)
class Kong2021Output:
    """What each head says of every frame, before any sigmoid. float32.

    Onset and offset are no probabilities: 1 where one is, falling to 0 over 50 ms on both sides.
    """

    frame: Float[Array, "B T P"]
    onset: Float[Array, "B T P"]
    offset: Float[Array, "B T P"]
    velocity: Float[Array, "B T P"]
    pedal_onset: Float[Array, "B T 1"]
    pedal_offset: Float[Array, "B T 1"]
    pedal_frame: Float[Array, "B T 1"]


def _linear(
    width: int, units: int, config: Kong2021Config, rngs: nnx.Rngs, *, bias: bool = True
) -> nnx.Linear:
    return nnx.Linear(
        width,
        units,
        use_bias=bias,
        kernel_init=_XAVIER,
        dtype=config.policy.compute,
        param_dtype=config.policy.param,
        rngs=rngs,
    )


def _gru(width: int, config: Kong2021Config, rngs: nnx.Rngs) -> BiGRU:
    return BiGRU(width, config.gru_units, policy=config.policy, rngs=rngs)


def _mel_norm(config: Kong2021Config, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Normalises each mel bin over batch and time."""
    return nnx.BatchNorm(
        config.frontend.num_bins,
        momentum=config.conv_momentum,
        epsilon=config.conv_epsilon,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


class ConvBlock(nnx.Module):
    """Two 3x3 convolutions without bias, each with batch norm and ReLU; then half the bins."""

    def __init__(self, width: int, channels: int, config: Kong2021Config, *, rngs: nnx.Rngs):
        make_conv = partial(
            Conv2D, bias=False, initializer=_XAVIER, policy=config.policy, rngs=rngs
        )
        make_norm = partial(
            BatchNormReLU,
            channels,
            momentum=config.conv_momentum,
            epsilon=config.conv_epsilon,
            use_scale=True,
            rngs=rngs,
        )
        self.conv1, self.conv2 = make_conv(width, channels), make_conv(channels, channels)
        self.norm1, self.norm2 = make_norm(), make_norm()

    def __call__(
        self, x: Float[Array, "B T F C"], *, mask: Bool[Array, "B T"] | None, train: bool
    ) -> Float[Array, "B T F_out C_out"]:
        x = self.norm1(self.conv1(x), train=train, mask=mask)
        x = self.norm2(self.conv2(x), train=train, mask=mask)
        return halve_bins(x)


def halve_bins(x: Float[Array, "B T F C"]) -> Float[Array, "B T F_out C"]:
    """Mean of every two neighbouring bins; an odd one at the top is dropped."""
    last = x.shape[2] // 2 * 2
    return (x[:, :, :last:2] + x[:, :, 1:last:2]) * jnp.asarray(0.5, x.dtype)


class AcousticModel(nnx.Module):
    """One head: four convolution blocks, a dense layer, two recurrent layers, a value a pitch."""

    def __init__(self, outputs: int, config: Kong2021Config, *, rngs: nnx.Rngs):
        widths = (1, *config.conv_channels)
        self.block1, self.block2, self.block3, self.block4 = (
            ConvBlock(a, b, config, rngs=rngs) for a, b in pairwise(widths)
        )
        width = widths[-1] * (config.frontend.num_bins // 16)
        self.fc = _linear(width, config.fc_units, config, rngs, bias=False)
        self.fc_norm = BatchNormReLU(
            config.fc_units,
            momentum=config.fc_momentum,
            epsilon=config.fc_epsilon,
            use_scale=True,
            rngs=rngs,
        )
        self.gru1 = _gru(config.fc_units, config, rngs)
        self.gru2 = _gru(2 * config.gru_units, config, rngs)
        self.out = _linear(2 * config.gru_units, outputs, config, rngs)
        self.config = config

    def hidden(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None,
        train: bool,
        key: Key | None,
    ) -> Float[Array, "B T D"]:
        """What goes into the recurrent layers."""
        after_pool, after_fc = self.config.dropout
        keys = [None] * 5 if key is None else jax.random.split(key, 5)
        x = features[..., None]
        for number, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            x = dropout(block(x, mask=mask, train=train), after_pool, keys[number])
        x = self.fc(x.reshape(*x.shape[:2], -1))
        x = self.fc_norm(x[:, :, None], train=train, mask=mask)[:, :, 0]
        return dropout(x, after_fc, keys[4])


class Kong2021(nnx.Module):
    """The note network and the pedal network."""

    window_s: ClassVar[float] = 10.0  # the published segments
    context_s: ClassVar[float] = 2.5  # of which the middle half is kept
    float32_activations: ClassVar[tuple[str, ...]] = ("onset", "offset", "pedal_offset")

    def __init__(self, config: Kong2021Config, *, rngs: nnx.Rngs):
        self.config = config
        pitches, units = config.num_pitches, config.gru_units
        self.norm = _mel_norm(config, rngs)
        make = partial(AcousticModel, pitches, config, rngs=rngs)
        self.frame, self.onset, self.offset, self.velocity = (make() for _ in NOTE_HEADS)
        self.onset_gru = _gru(2 * pitches, config, rngs)
        self.onset_out = _linear(2 * units, pitches, config, rngs)
        self.frame_gru = _gru(3 * pitches, config, rngs)
        self.frame_out = _linear(2 * units, pitches, config, rngs)
        self.pedal_norm = _mel_norm(config, rngs)
        make = partial(AcousticModel, 1, config, rngs=rngs)
        self.pedal_onset, self.pedal_offset, self.pedal_frame = (make() for _ in PEDAL_HEADS)

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Kong2021Output:
        """Logits for a batch of log-mel spectrograms.

        mask is True at frames that exist; what lies elsewhere changes nothing that is returned
        for them. With `train`, batch statistics are used and updated, and `key` drives dropout.
        """
        heads = (*NOTE_HEADS, *PEDAL_HEADS)
        keys: dict[str, Key | None] = dict.fromkeys((*heads, "recurrent"))
        if train and key is not None:
            keys = dict(zip(keys, jax.random.split(key, len(keys)), strict=True))
        precision = self.config.policy.matmul_precision
        with jax.default_matmul_precision(None if precision == "default" else precision):
            shared = {
                names: self._normalised(norm, features, mask, train)
                for names, norm in ((NOTE_HEADS, self.norm), (PEDAL_HEADS, self.pedal_norm))
            }
            models: dict[str, AcousticModel] = {name: getattr(self, name) for name in heads}
            hidden = [
                models[name].hidden(x, mask=mask, train=train, key=keys[name])
                for names, x in shared.items()
                for name in names
            ]
            hidden = bigrus([models[name].gru1 for name in heads], hidden, mask)
            hidden = bigrus([models[name].gru2 for name in heads], hidden, mask)
            drop = [None] * (len(heads) + 2)
            if keys["recurrent"] is not None:
                drop = list(jax.random.split(keys["recurrent"], len(drop)))
            rate = self.config.dropout[1]
            logits = {
                name: models[name].out(dropout(x, rate, drop[i])).astype(jnp.float32)
                for i, (name, x) in enumerate(zip(heads, hidden, strict=True))
            }
            logits["onset"] = self._onset(logits, mask, drop[-2])
            logits["frame"] = self._frame(logits, mask, drop[-1])
        return Kong2021Output(**logits)

    def _normalised(
        self, norm: nnx.BatchNorm, features: Array, mask: Array | None, train: bool
    ) -> Array:
        cells = None if mask is None else mask[..., None]
        x = norm(features, use_running_average=not train, mask=cells)
        return mask_frames(x, mask).astype(self.config.policy.compute)

    def _onset(
        self, logits: Mapping[str, Array], mask: Array | None, key: Key | None
    ) -> Float[Array, "B T P"]:
        """Onsets once more, from themselves and how strong they are (section III-C)."""
        onset = jax.nn.sigmoid(logits["onset"])
        root = jnp.exp(0.5 * jax.nn.log_sigmoid(logits["onset"]))  # its gradient at 0 is finite
        velocity = jax.lax.stop_gradient(jax.nn.sigmoid(logits["velocity"]))
        x = self.onset_gru(jnp.concatenate([onset, root * velocity], axis=-1), mask)
        return self.onset_out(dropout(x, self.config.dropout[1], key)).astype(jnp.float32)

    def _frame(
        self, logits: Mapping[str, Array], mask: Array | None, key: Key | None
    ) -> Float[Array, "B T P"]:
        """Frames once more, from themselves, onsets and offsets."""
        heard = [jax.nn.sigmoid(logits["frame"])]
        heard += [jax.lax.stop_gradient(jax.nn.sigmoid(logits[n])) for n in ("onset", "offset")]
        x = self.frame_gru(jnp.concatenate(heard, axis=-1), mask)
        return self.frame_out(dropout(x, self.config.dropout[1], key)).astype(jnp.float32)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T P"]]:
        """What was heard, from samples at the front-end's rate: the input of `decode`.

        frames: how many frames of each item are sound rather than padding (all if None).
        Returns the output of every head by name, 0..1, float32; those of the pedal are (B, T, 1).
        """
        features = spectrogram(audio, self.config.frontend)
        mask = None
        if frames is not None:
            mask = jnp.arange(features.shape[1]) < frames[:, None]
        out = self(features, mask=mask)
        return {n: jax.nn.sigmoid(getattr(out, n)) for n in (*NOTE_HEADS, *PEDAL_HEADS)}


# Loss ---------------------------------------------------------------------------------------


def loss(
    model: Kong2021, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of all heads' losses on a batch, and each of them. float32.

    batch: audio (B, N) float32 in -1..1 or int16, the labels of `targets` stacked, and optionally
    mask (B, T), True at frames that count. Binary cross-entropy of the regressed values (equations
    5 to 8): onset, offset and frame where a note is wholly `known`, velocity at onsets, the pedal
    everywhere. Notes and pedal share no parameter, so that one sum trains both.
    """
    config, audio = model.config, batch["audio"]
    features = spectrogram(audio, config.frontend)
    if batch["onset"].shape != (*features.shape[:2], config.num_pitches):
        raise AudioError(
            f"labels have shape {batch['onset'].shape} but {audio.shape[-1]} samples give "
            f"{(*features.shape[:2], config.num_pitches)}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    mask = batch.get("mask")
    out = model(features, mask=mask, train=train, key=key)
    seen = 1.0 if mask is None else mask[..., None].astype(jnp.float32)

    def mean(name: str, weight: Array | float) -> Array:
        logits, label = getattr(out, name), batch[name].astype(jnp.float32)
        cells = label * jax.nn.softplus(-logits) + (1 - label) * jax.nn.softplus(logits)
        counted = jnp.broadcast_to(weight * seen, cells.shape)
        return (cells * counted).sum() / jnp.maximum(counted.sum(), 1.0)

    known, struck = (batch[name].astype(jnp.float32) for name in ("known", "struck"))
    parts = {name: mean(name, known) for name in ("onset", "offset", "frame")}
    parts["velocity"] = mean("velocity", struck)
    parts |= {name: mean(name, 1.0) for name in PEDAL_HEADS}
    return sum(parts.values(), jnp.zeros(())), parts
