"""Sizes and constants of Transkun, and the variants that have names."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from musicjax.audio.config import FrontendConfig
from musicjax.audio.presets import preset
from musicjax.errors import ConfigError
from musicjax.nn.matrix_units import has_bfloat16_units
from musicjax.types import LOWEST_PITCH, NUM_PITCHES, Policy


@dataclass(frozen=True)
class TranskunConfig:
    """Sizes and constants of the network. Hashable, static. Defaults are the published V2."""

    frontend: FrontendConfig = preset("transkun")  # noqa: RUF009 - frozen
    extra_windows: int = 5  # learned Gaussian windows beside Hann's
    segment_s: float = 16.0  # heard as one piece
    segment_hop_s: float = 8.0  # from one piece to the next, rounded up to whole frames
    pedals: tuple[int, ...] = (64, 67)  # controller numbers: sustain and soft
    min_pitch: int = LOWEST_PITCH
    num_pitches: int = NUM_PITCHES
    channels: int = 64  # of the first convolution; the transformer is four times as wide
    num_layers: int = 6
    num_heads: int = 8
    mlp_factor: int = 4
    head_units: int = 512
    position_spread: float = 1.0  # deviation of the random frequencies of position embeddings
    # Training.
    head_dropout: float = 0.1
    remat: bool = True  # make the layers' activations again when differentiating
    max_events_per_s: float = 64.0  # room for labels in a clip
    # In float32 and on a CPU, when not training: whether the operands of the MLPs' products, which
    # are two thirds of all the arithmetic, are rounded to bfloat16, which changes the velocity of a
    # note in some hundreds. auto: where the processor has units that make it faster.
    mlp_products: Literal["float32", "bfloat16", "auto"] = "float32"
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.channels % 2 or 4 * self.channels % self.num_heads:
            raise ConfigError(
                f"channels is {self.channels}; it must be even (for the norm's four groups), and "
                f"four times it must be a multiple of num_heads ({self.num_heads})."
            )
        if not 0 < self.segment_hop_s < self.segment_s:
            raise ConfigError(
                f"segment_hop_s is {self.segment_hop_s} and segment_s {self.segment_s}; segments "
                "must overlap."
            )

    @property
    def mlp_rounded_on_cpu(self) -> bool:
        """Whether a CPU takes the MLPs' products in bfloat16."""
        if self.mlp_products == "auto":
            return has_bfloat16_units()
        return self.mlp_products == "bfloat16"

    @property
    def width(self) -> int:
        """Width D of the transformer."""
        return 4 * self.channels

    @property
    def num_symbols(self) -> int:
        """Sequences of intervals S: the pedals, then the keys from the lowest."""
        return len(self.pedals) + self.num_pitches

    @property
    def symbol_numbers(self) -> tuple[int, ...]:
        """What each symbol is: minus a pedal's controller number, or a MIDI pitch."""
        pitches = range(self.min_pitch, self.min_pitch + self.num_pitches)
        return (*(-number for number in self.pedals), *pitches)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Frequency bins and windows of one frame of features."""
        return self.frontend.num_bins, 1 + self.extra_windows


def get_config(variant: str = "v2") -> TranskunConfig:
    """The config of a variant: v2, the published one with 13,613,711 parameters, small or tiny."""
    if variant in ("v2", "base"):
        return TranskunConfig()
    if variant == "small":
        return TranskunConfig(channels=32, num_layers=4, num_heads=4)
    if variant == "tiny":
        return TranskunConfig(
            frontend=replace(
                preset("transkun"),
                sample_rate=16_000,
                window_length=1024,
                fft_length=1024,
                hop_length=512,
                num_bins=40,
            ),
            extra_windows=2,
            segment_s=4.0,
            segment_hop_s=2.0,
            channels=4,
            num_layers=2,
            num_heads=2,
            mlp_factor=2,
            head_units=16,
        )
    raise ConfigError(f"transkun has no variant {variant!r}; choose v2, small or tiny.")


def label_room(num_samples: int, config: TranskunConfig) -> int:
    """How many events the labels of a clip have room for."""
    seconds = num_samples / config.frontend.sample_rate
    return 2 * config.num_symbols + math.ceil(seconds * config.max_events_per_s)
