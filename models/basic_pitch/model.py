"""Basic Pitch: notes of any instrument, and how their pitch bends, from a very small network.

R. M. Bittner, J. J. Bosch, D. Rubinstein, G. Meseguer-Brocal and S. Ewert, "A Lightweight
Instrument-Agnostic Model for Polyphonic Note Transcription and Multipitch Estimation", ICASSP 2022.
Notes are made of its three posteriors in `note_creation.py`; `card.md` tells where this differs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.cqt import BASIC_PITCH_CQT, CQTConfig, cqt_power, normalised_log
from musicjax.audio.framing import Windowing
from musicjax.errors import AudioError, ConfigError
from musicjax.models.basic_pitch.stacking import (
    convolve_stacked,
    convolve_to_one,
    harmonic_shifts,
    stack_harmonics,
)
from musicjax.nn import BatchNormReLU, mask_frames
from musicjax.types import LOWEST_PITCH, NUM_PITCHES, Key, Policy

_HE_AVERAGE = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class BasicPitchConfig:
    """Everything that distinguishes one form of the system from another. Hashable, static.

    The defaults are the model that its authors published ("icassp_2022").
    """

    frontend: CQTConfig = BASIC_PITCH_CQT
    harmonics: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    min_pitch: int = LOWEST_PITCH
    num_pitches: int = NUM_PITCHES
    bins_per_semitone: int = 3
    contour_channels: int = 8
    note_channels: int = 32
    onset_channels: int = 32
    norm_epsilon: float = 1e-3
    norm_momentum: float = 0.99
    # Windows of a recording: 2 s less a hop, neighbours overlap by so many frames.
    window_samples: int = 43_844
    overlap_frames: int = 30
    # Labels and loss.
    label_smoothing: float = 0.2
    onset_positive_weight: float | None = 0.95  # None: cells with and without an onset alike
    contour_centre: int = 1  # bin of its three from which bends count: see the card
    # Decoding, where the call does not say otherwise.
    onset_threshold: float = 0.5
    frame_threshold: float = 0.3
    min_duration_s: float = 0.1277
    frame_times: Literal["published", "exact"] = "published"
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.frontend.bins_per_octave != 12 * self.bins_per_semitone:
            raise ConfigError(
                f"the front-end has {self.frontend.bins_per_octave} bins to an octave; with "
                f"{self.bins_per_semitone} bins to a semitone it must have "
                f"{12 * self.bins_per_semitone}."
            )
        if self.frontend.num_bins < self.num_contours:
            raise ConfigError(
                f"the front-end has {self.frontend.num_bins} bins, fewer than the "
                f"{self.num_contours} of the contours; give it at least as many."
            )

    @property
    def num_contours(self) -> int:
        """Bins of the contour output."""
        return self.num_pitches * self.bins_per_semitone

    @property
    def window_frames(self) -> int:
        """Frames that the network makes of one window."""
        return self.window_samples // self.frontend.hop_length + 1


def get_config(variant: str = "base") -> BasicPitchConfig:
    """The config of a variant.

    base (also called icassp2022): the published model. small: the same. tiny: the same network
    with few channels, and two octaves from C3, for tests.
    """
    variants: dict[str, Callable[[], BasicPitchConfig]] = {
        "base": BasicPitchConfig,
        "icassp2022": BasicPitchConfig,
        "small": BasicPitchConfig,
        "tiny": partial(
            BasicPitchConfig,
            frontend=CQTConfig(f_min_hz=130.8128, num_bins=108),
            min_pitch=48,
            num_pitches=24,
            contour_channels=2,
            note_channels=3,
            onset_channels=4,
        ),
    }
    if variant not in variants:
        raise ConfigError(
            f"basic_pitch has no variant {variant!r}; choose one of {', '.join(variants)}."
        )
    return variants[variant]()


@partial(jax.tree_util.register_dataclass, data_fields=["contour", "note", "onset"], meta_fields=[])
@dataclass(frozen=True)
class BasicPitchOutput:
    """What the network says of every frame, before any sigmoid. float32.

    contour (B, T, contours) has three bins to a semitone, note and onset (B, T, P) one.
    """

    contour: Float[Array, "B T F"]
    note: Float[Array, "B T P"]
    onset: Float[Array, "B T P"]


class Convolution(nnx.Module):
    """A kernel (rows, columns, C_in, C_out) whose filters have unit norm, and perhaps a bias.

    The published training projects each filter back to unit norm after every step; here it is
    divided by its norm where it is used, which gives the same networks.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], *, bias: bool, policy: Policy, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(_HE_AVERAGE(rngs.params(), shape, policy.param))
        self.bias = nnx.Param(jnp.zeros(shape[-1:], policy.param)) if bias else None
        self.dtype = policy.compute

    def filters(self) -> Float[Array, "rows columns C C_out"]:
        """The kernel with filters of norm 1, in the dtype of computing."""
        kernel = self.kernel[...].astype(jnp.float32)
        norm = jnp.sqrt((kernel * kernel).sum(axis=(0, 1, 2)))
        return (kernel / (norm + 1e-7)).astype(self.dtype)

    def offset(self) -> Float[Array, "C_out"]:
        """The bias, zeros if there is none."""
        if self.bias is None:
            return jnp.zeros(self.kernel.shape[-1:], self.dtype)
        return self.bias[...].astype(self.dtype)

    def strided(self, x: Float[Array, "B T F C"], step: int) -> Float[Array, "B T F_out C_out"]:
        """Convolve with a stride over frequency, padded with zeros to F / step bins."""
        y = jax.lax.conv_general_dilated(
            x, self.filters(), (1, step), "SAME", dimension_numbers=_DIMENSIONS
        )
        return y + self.offset()

    def to_one(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T F"]:
        """Convolve to a single map, float32."""
        y = convolve_to_one(x, self.filters())
        return y.astype(jnp.float32) + self.offset().astype(jnp.float32)


class BasicPitch(nnx.Module):
    """The network: a constant-Q spectrogram to contours, notes and onsets."""

    float32_activations: ClassVar[tuple[str, ...]] = ("note", "onset")  # peaks are compared

    def __init__(self, config: BasicPitchConfig, *, rngs: nnx.Rngs):
        self.config = config
        policy, harmonics = config.policy, len(config.harmonics)
        contours, notes, onsets = (
            config.contour_channels,
            config.note_channels,
            config.onset_channels,
        )
        make = partial(Convolution, policy=policy, rngs=rngs)
        make_norm = partial(
            BatchNormReLU,
            momentum=config.norm_momentum,
            epsilon=config.norm_epsilon,
            use_scale=True,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            1,
            momentum=config.norm_momentum,
            epsilon=config.norm_epsilon,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        # Section 3 and figure 1; 3 x 39 is 13 semitones. Batch norm takes a bias out again.
        self.contour_conv = make((3, 39, harmonics, contours), bias=False)
        self.contour_norm = make_norm(contours)
        self.contour_out = make((5, 5, contours, 1), bias=True)
        self.note_conv = make((7, 7, 1, notes), bias=True)
        self.note_out = make((7, 3, notes, 1), bias=True)
        self.onset_conv = make((5, 5, harmonics, onsets), bias=False)
        self.onset_norm = make_norm(onsets)
        self.onset_out = make((3, 3, onsets + 1, 1), bias=True)

    @property
    def windowing(self) -> Windowing:
        """Windows of the published kind: what the network sees depends on where they are cut."""
        config = self.config
        margin, hop = config.overlap_frames // 2, config.frontend.hop_length
        return Windowing(
            samples=config.window_samples,
            stride=config.window_samples - config.overlap_frames * hop,
            lead=margin * hop,
            first=margin,
            last=config.window_frames - margin,
        )

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> BasicPitchOutput:
        """Logits for a batch of constant-Q spectrograms in 0..1 (`normalised_log`).

        mask is True at frames that exist; what lies elsewhere changes nothing that is returned
        for them. With `train`, batch statistics are used and updated. There is no dropout: `key`
        is not used.
        """
        config = self.config
        precision = config.policy.matmul_precision
        with jax.default_matmul_precision(None if precision == "default" else precision):
            cells = None if mask is None else mask[..., None, None]
            x = self.norm(features[..., None], use_running_average=not train, mask=cells)[..., 0]
            x = mask_frames(x, mask).astype(config.policy.compute)
            shifts = harmonic_shifts(config.harmonics, config.frontend.bins_per_octave)
            y = convolve_stacked(x, self.contour_conv.filters(), shifts, config.num_contours)
            y = self.contour_norm(y, train=train, mask=mask)
            contour = self.contour_out.to_one(y)

            step = config.bins_per_semitone
            p = mask_frames(jax.nn.sigmoid(contour), mask).astype(x.dtype)
            y = jax.nn.relu(self.note_conv.strided(p[..., None], step))
            note = self.note_out.to_one(mask_frames(y, mask))

            stacked = stack_harmonics(x, shifts, config.num_contours)
            y = self.onset_norm(self.onset_conv.strided(stacked, step), train=train, mask=mask)
            p = mask_frames(jax.nn.sigmoid(note), mask).astype(x.dtype)
            onset = self.onset_out.to_one(jnp.concatenate([p[..., None], y], axis=-1))
        return BasicPitchOutput(contour, note, onset)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T F"]]:
        """What was heard, from samples at the front-end's rate: the input of `decode`.

        Each item is one window, heard whole, as the published model does it: its level is scaled
        between the window's least and largest, and a window that sound does not fill is filled up
        with zeros, which count. So `frames`, how much of each item is sound, changes nothing.
        Returns contour (B, T, contours), note and onset (B, T, P), 0..1, float32.
        """
        out = self(normalised_log(cqt_power(audio, self.config.frontend)))
        logits = {"contour": out.contour, "note": out.note, "onset": out.onset}
        return {name: jax.nn.sigmoid(value) for name, value in logits.items()}


# Loss ---------------------------------------------------------------------------------------


def _cross_entropy(
    logits: Float[Array, "B T F"], label: Float[Array, "B T F"], smoothing: float
) -> Float[Array, "B T F"]:
    """Binary cross-entropy per cell, from logits, with labels squeezed towards one half."""
    label = label * (1 - smoothing) + smoothing / 2
    return label * jax.nn.softplus(-logits) + (1 - label) * jax.nn.softplus(logits)


def loss(
    model: BasicPitch, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of the losses of contours, notes and onsets, and each of them. float32.

    batch: audio (B, N) float32 in -1..1 or int16, the labels of `targets` stacked, and optionally
    mask (B, T), True at frames that count. Binary cross-entropy with smoothed labels (section 3.2);
    for onsets, which few cells have, the mean over cells with one and the mean over the others,
    weighted `onset_positive_weight` to the rest of 1.
    """
    config, audio = model.config, batch["audio"]
    features = normalised_log(cqt_power(audio, config.frontend))
    if batch["note"].shape != (*features.shape[:2], config.num_pitches):
        raise AudioError(
            f"labels have shape {batch['note'].shape} but {audio.shape[-1]} samples give "
            f"{(*features.shape[:2], config.num_pitches)}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    mask = batch.get("mask")
    out = model(features, mask=mask, train=train, key=key)
    seen = jnp.ones((), jnp.float32) if mask is None else mask[..., None].astype(jnp.float32)

    def mean(cells: Array, weight: Array | None = None) -> Array:
        counted = jnp.broadcast_to(seen if weight is None else seen * weight, cells.shape)
        return (cells * counted).sum() / jnp.maximum(counted.sum(), 1.0)

    parts = {}
    for name, logits in (("contour", out.contour), ("note", out.note), ("onset", out.onset)):
        label = batch[name].astype(jnp.float32)
        cells = _cross_entropy(logits, label, config.label_smoothing)
        weight = config.onset_positive_weight if name == "onset" else None
        if weight is None:
            parts[name] = mean(cells)
        else:
            positive = (label > 0).astype(jnp.float32)
            parts[name] = weight * mean(cells, positive) + (1 - weight) * mean(cells, 1 - positive)
    return sum(parts.values(), jnp.zeros(())), parts


def frame_times(count: int, config: BasicPitchConfig) -> Float[np.ndarray, "T"]:
    """When each frame of a recording stands, in seconds, as windows are put end to end.

    The windows' frames do not quite fill their stride, so that time runs a little slower than the
    hop tells. "exact": where each frame was centred. "published": the authors' formula, which takes
    the difference off once every 172 frames with a constant found by trial; it is the same in the
    long run and up to 10 ms off in between.
    """
    hop, rate = config.frontend.hop_length, config.frontend.sample_rate
    frame = np.arange(count)
    if config.frame_times == "exact":
        kept = config.window_frames - 2 * (config.overlap_frames // 2)
        stride = config.window_samples - config.overlap_frames * hop
        return (frame // kept * stride + frame % kept * hop) / rate
    missing = config.window_frames - config.window_samples / hop
    slip_s = hop / rate * missing + 0.0018
    return frame * (hop / rate) - np.floor(frame / config.window_frames) * slip_s
