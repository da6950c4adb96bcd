"""Onsets and Frames: piano transcription by an onset detector that gates a frame detector.

C. Hawthorne et al., "Onsets and Frames: Dual-Objective Piano Transcription", ISMIR 2018, and
"Enabling Factorized Piano Music Modeling and Generation with the MAESTRO Dataset", ICLR 2019.
Four published forms share this file and differ in `OnsetsFramesConfig` only; `card.md` lists how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.frontend import FrontendConfig, spectrogram
from musicjax.audio.presets import preset
from musicjax.errors import AudioError, ConfigError
from musicjax.nn import BiLSTM, ConvStack, bilstms
from musicjax.types import LOWEST_PITCH, NUM_PITCHES, Key, Policy

Head = Literal["onset", "offset", "activation"]
Loss = Literal["onset", "offset", "frame", "velocity"]


@dataclass(frozen=True)
class OnsetsFramesConfig:
    """Everything that distinguishes one form of the system from another. Hashable, static.

    The defaults are the public PyTorch port at paper size (model complexity 48).
    """

    frontend: FrontendConfig = preset("onsets_frames")  # noqa: RUF009 - frozen
    min_pitch: int = LOWEST_PITCH
    num_pitches: int = NUM_PITCHES
    conv_channels: tuple[int, int, int] = (48, 48, 96)
    fc_units: int = 768
    lstm_units: int = 384  # per direction
    lstm_biases: Literal[1, 2] = 2  # PyTorch keeps two that are added; Magenta one
    conv_bias: bool = True
    fc_relu: bool = False
    norm_scale: bool = True
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    dropout: tuple[float, float, float] = (0.25, 0.25, 0.5)  # after pool 1, pool 2, dense
    init: Literal["fan_in", "fan_avg"] = "fan_in"
    heads: tuple[Head, ...] = ("onset", "offset", "activation")  # in the order of the concat
    stop_gradient: bool = True  # from the frame detector into onset and offset detectors
    # Labels and loss.
    labels: Literal["frame", "32ms"] = "frame"  # onset and offset: one frame, or 32 ms of frames
    frame_weight: float = 1.0  # 2018: weight c of frames in the onset, then c, c/2, c/3 ...
    onset_weight: float = 1.0  # weight of frames with an onset in the onset loss
    activation_weight: float = 0.0  # of a frame loss on the activation itself (Magenta's option)
    velocity_loss: Literal["per_onset", "per_frame"] = "per_onset"
    # Losses that are trained; empty: all. Stopped gradients make the heads separate networks, so
    # each can be given the time it needs: the others are neither computed nor changed.
    train_heads: tuple[Loss, ...] = ()
    # Decoding, where the call does not say otherwise.
    onset_threshold: float = 0.5
    frame_threshold: float = 0.5
    frame_fall: float = 0.0
    offset_worth: float = 0.0
    split_reonsets: bool = False
    # Velocity 0..1 to MIDI: v * scale + bias.
    velocity_scale: float = 127.0
    velocity_bias: float = 0.0
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.train_heads and not self.stop_gradient:
            raise ConfigError(
                f"train_heads is {self.train_heads} but stop_gradient is off, so the frame loss "
                "reaches every head; train them together, or stop the gradients."
            )


def _port(complexity: int, **fields: Any) -> OnsetsFramesConfig:
    """The PyTorch port's sizes for a `model_complexity`."""
    return OnsetsFramesConfig(
        conv_channels=(complexity, complexity, 2 * complexity),
        fc_units=16 * complexity,
        lstm_units=8 * complexity,
        **fields,
    )


def _magenta() -> OnsetsFramesConfig:
    """Magenta's hyper-parameters of 2019."""
    return OnsetsFramesConfig(
        frontend=preset("onsets_frames_magenta"),
        lstm_units=256,
        lstm_biases=1,
        conv_bias=False,
        fc_relu=True,
        norm_scale=False,
        norm_epsilon=1e-3,
        norm_momentum=0.999,
        init="fan_avg",
        heads=("onset", "activation", "offset"),
        labels="32ms",
        velocity_loss="per_frame",
        split_reonsets=True,
        velocity_scale=80.0,
        velocity_bias=10.0,
    )


def _paper2018() -> OnsetsFramesConfig:
    """The first paper: narrower, no offset detector, gradients everywhere, weighted frames."""
    return replace(
        _magenta(),
        conv_channels=(32, 32, 64),
        fc_units=512,
        lstm_units=128,
        heads=("onset", "activation"),
        stop_gradient=False,
        frame_weight=5.0,
    )


def get_config(variant: str = "base") -> OnsetsFramesConfig:
    """The config of a variant.

    base (also called port): the public PyTorch port, 26,491,256 parameters. small: the same at
    complexity 16, 3,204,856 parameters. tiny: complexity 2, for tests. magenta: the authors' code
    of 2019. paper2018: the first paper's network, without an offset detector.
    """
    variants = {
        "base": lambda: _port(48),
        "port": lambda: _port(48),
        "small": lambda: _port(
            16,
            onset_weight=2.0,
            activation_weight=1.0,
            dropout=(0.0, 0.0, 0.0),
            onset_threshold=0.36,
            frame_threshold=0.05,
            frame_fall=0.5,
            offset_worth=10.0,
            split_reonsets=True,
        ),
        "tiny": lambda: _port(2),
        "magenta": _magenta,
        "paper2018": _paper2018,
    }
    if variant not in variants:
        raise ConfigError(
            f"onsets_frames has no variant {variant!r}; choose one of {', '.join(variants)}."
        )
    return variants[variant]()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["onset", "offset", "activation", "frame", "velocity"],
    meta_fields=[],
)
@dataclass(frozen=True)
class OnsetsFramesOutput:
    """What each head says of every frame and pitch, before any sigmoid. float32.

    Probabilities are the sigmoid of onset, offset, activation and frame; velocity is used as it
    is, near 0..1 at onsets. A head that was not asked for, or that the form does not have, is None.
    """

    onset: Float[Array, "B T P"] | None
    offset: Float[Array, "B T P"] | None
    activation: Float[Array, "B T P"] | None
    frame: Float[Array, "B T P"] | None
    velocity: Float[Array, "B T P"] | None


def _initializer(config: OnsetsFramesConfig) -> nnx.Initializer:
    if config.init == "fan_avg":  # Magenta: variance scaling, factor 2, uniform
        return nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def _linear(width: int, units: int, config: OnsetsFramesConfig, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        width,
        units,
        kernel_init=_initializer(config),
        dtype=config.policy.compute,
        param_dtype=config.policy.param,
        rngs=rngs,
    )


def _conv_stack(config: OnsetsFramesConfig, rngs: nnx.Rngs) -> ConvStack:
    return ConvStack(
        config.frontend.num_bins,
        config.conv_channels,
        config.fc_units,
        relu=config.fc_relu,
        conv_bias=config.conv_bias,
        norm_scale=config.norm_scale,
        norm_momentum=config.norm_momentum,
        norm_epsilon=config.norm_epsilon,
        dropout=config.dropout,
        initializer=_initializer(config),
        policy=config.policy,
        rngs=rngs,
    )


class Detector(nnx.Module):
    """One head: an acoustic model, a bidirectional LSTM if asked for, a value for each pitch."""

    def __init__(self, config: OnsetsFramesConfig, *, recurrent: bool, rngs: nnx.Rngs):
        self.stack = _conv_stack(config, rngs)
        self.lstm = _bilstm(config.fc_units, config, rngs) if recurrent else None
        width = 2 * config.lstm_units if recurrent else config.fc_units
        self.out = _linear(width, config.num_pitches, config, rngs)


def _bilstm(width: int, config: OnsetsFramesConfig, rngs: nnx.Rngs) -> BiLSTM:
    return BiLSTM(
        width,
        config.lstm_units,
        two_biases=config.lstm_biases == 2,
        policy=config.policy,
        rngs=rngs,
    )


class OnsetsFrames(nnx.Module):
    """The network: features to onset, offset, activation, frame and velocity for every pitch."""

    # An LSTM never forgets wholly: with 2 s as many notes differ from those of one long window.
    context_s: ClassVar[float] = 1.5

    def __init__(self, config: OnsetsFramesConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.onset = Detector(config, recurrent=True, rngs=rngs)
        self.offset = (
            Detector(config, recurrent=True, rngs=rngs) if "offset" in config.heads else None
        )
        self.activation = Detector(config, recurrent=False, rngs=rngs)
        self.frame_lstm = _bilstm(len(config.heads) * config.num_pitches, config, rngs)
        self.frame_out = _linear(2 * config.lstm_units, config.num_pitches, config, rngs)
        self.velocity = Detector(config, recurrent=False, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
        only: tuple[Loss, ...] = (),
    ) -> OnsetsFramesOutput:
        """Logits for a batch of spectrograms.

        mask is True at frames that exist; what lies elsewhere changes nothing that is returned
        for them. With `train`, batch statistics are used and updated, and `key` drives dropout.
        With `only`, no more is computed than these need, and `train` concerns these alone.
        """
        wanted = set(only) or {"onset", "offset", "frame", "velocity"}
        learning = wanted | ({"activation"} if "frame" in wanted else set())
        needed = learning | ({"onset", "offset"} if "frame" in wanted else set())
        names = ("onset", "offset", "activation", "velocity")
        heads = {n: getattr(self, n) for n in names if n in needed and getattr(self, n) is not None}
        keys: dict[str, Key] = {}
        if train and key is not None:
            keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        keys = {name: keys[name] for name in keys if name in learning}
        precision = self.config.policy.matmul_precision
        with jax.default_matmul_precision(None if precision == "default" else precision):
            hidden = {
                name: head.stack(
                    features, mask=mask, train=train and name in learning, key=keys.get(name)
                )
                for name, head in heads.items()
            }
            if recurrent := [name for name in heads if heads[name].lstm is not None]:
                layers, inputs = zip(*((heads[n].lstm, hidden[n]) for n in recurrent), strict=True)
                hidden.update(zip(recurrent, bilstms(layers, inputs, mask), strict=True))
            logits = {n: head.out(hidden[n]).astype(jnp.float32) for n, head in heads.items()}
            frame = self._frame(logits, mask) if "frame" in wanted else None
        return OnsetsFramesOutput(
            onset=logits.get("onset"),
            offset=logits.get("offset"),
            activation=logits.get("activation"),
            frame=frame,
            velocity=logits.get("velocity"),
        )

    def _frame(
        self, logits: Mapping[str, Float[Array, "B T P"]], mask: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T P"]:
        probabilities = []
        for name in self.config.heads:
            p = jax.nn.sigmoid(logits[name])
            stopped = self.config.stop_gradient and name != "activation"
            probabilities.append(jax.lax.stop_gradient(p) if stopped else p)
        x = self.frame_lstm(jnp.concatenate(probabilities, axis=-1), mask)
        return self.frame_out(x).astype(jnp.float32)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T P"]]:
        """What was heard, from samples at the front-end's rate: the input of `decode`.

        frames: how many frames of each item are sound rather than padding (all if None).
        Returns onset, offset and frame probabilities and velocity, all 0..1, float32.
        """
        features = spectrogram(audio, self.config.frontend)
        mask = None
        if frames is not None:
            mask = jnp.arange(features.shape[1]) < frames[:, None]
        out = self(features, mask=mask)
        heads = {"onset": out.onset, "offset": out.offset, "frame": out.frame}
        heard = {n: jax.nn.sigmoid(logits) for n, logits in heads.items() if logits is not None}
        if out.velocity is not None:
            heard["velocity"] = jnp.clip(out.velocity, 0.0, 1.0)
        return heard


# Loss ---------------------------------------------------------------------------------------


def _cross_entropy(
    logits: Float[Array, "B T P"], label: Array, positive_weight: float = 1.0
) -> Float[Array, "B T P"]:
    """Binary cross-entropy per cell, from logits, with a weight on the cells labelled 1."""
    label = label.astype(jnp.float32)
    positive = positive_weight * label * jax.nn.softplus(-logits)
    return positive + (1 - label) * jax.nn.softplus(logits)


def loss(
    model: OnsetsFrames, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of the heads' losses on a batch, and each of them. float32.

    batch: audio (B, N) float32 in -1..1 or int16, the labels of `targets` stacked (B, T, P), and
    optionally mask (B, T), True at frames that count. Onset, offset and frame: mean binary
    cross-entropy. Velocity: squared error at onsets, over the number of onsets (PyTorch port) or
    summed over pitches and averaged over frames (Magenta). `config.train_heads` names the losses
    that count; all if empty.
    """
    config, audio = model.config, batch["audio"]
    if audio.dtype == jnp.int16:
        audio = audio.astype(jnp.float32) / 32768.0
    mask = batch.get("mask")
    features = spectrogram(audio, config.frontend)
    if batch["onset"].shape != (*features.shape[:2], config.num_pitches):
        raise AudioError(
            f"labels have shape {batch['onset'].shape} but {batch['audio'].shape[-1]} samples give "
            f"{(*features.shape[:2], config.num_pitches)}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    out = model(features, mask=mask, train=train, key=key, only=config.train_heads)

    def mean(cells: jax.Array) -> jax.Array:
        if mask is None:
            return cells.mean()
        seen = jnp.broadcast_to(mask[..., None], cells.shape)
        return jnp.where(seen, cells, 0).sum() / jnp.maximum(seen.sum(), 1)

    learning = config.train_heads or ("onset", "offset", "frame", "velocity")
    parts = {}
    if "onset" in learning and out.onset is not None:
        parts["onset"] = mean(_cross_entropy(out.onset, batch["onset"], config.onset_weight))
    if "frame" in learning and out.frame is not None:
        frame = _cross_entropy(out.frame, batch["frame"])
        parts["frame"] = mean(frame * batch["frame_weight"] if "frame_weight" in batch else frame)
        if config.activation_weight and out.activation is not None:
            seen = mean(_cross_entropy(out.activation, batch["frame"]))
            parts["activation"] = config.activation_weight * seen
    if "offset" in learning and out.offset is not None:
        parts["offset"] = mean(_cross_entropy(out.offset, batch["offset"]))
    if "velocity" in learning and out.velocity is not None:
        at_onset = batch["onset"].astype(jnp.float32)
        if mask is not None:
            at_onset = jnp.where(mask[..., None], at_onset, 0)
        squared = at_onset * (batch["velocity"].astype(jnp.float32) - out.velocity) ** 2
        if config.velocity_loss == "per_onset":
            parts["velocity"] = squared.sum() / jnp.maximum(at_onset.sum(), 1)
        else:
            parts["velocity"] = mean(squared) * config.num_pitches
    return sum(parts.values(), jnp.zeros(())), parts
