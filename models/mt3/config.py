"""Sizes, language and habits of MT3, and the variants that have names."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from musicjax.audio.config import FrontendConfig
from musicjax.audio.presets import preset
from musicjax.errors import ConfigError
from musicjax.nn.forms import TransformerConfig, form
from musicjax.notes.vocabulary import CodecConfig, codec_config, vocabulary_of
from musicjax.types import Policy


@dataclass(frozen=True)
class MT3Config:
    """Everything that distinguishes one form of the system from another. Hashable, static.

    The defaults are the published MT3.
    """

    frontend: FrontendConfig = preset("mt3")  # noqa: RUF009 - frozen
    codec: CodecConfig = codec_config("mt3")  # noqa: RUF009 - frozen
    d_model: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    # Frames that the encoder reads as one position; they lie side by side, so none is lost.
    stack_frames: int = 1
    # Channels of a convolutional stack in front of the encoder, and values that it makes of a
    # frame; None: the encoder reads spectrogram frames, as the original does.
    stem: tuple[int, int, int] | None = None
    stem_units: int = 256
    # What the encoder reads where the last segment of a recording has no more frames: rows of 0.0
    # behind the log, which is loud, as the original has it, or the sound of silence.
    padding: Literal["zero_rows", "silence"] = "zero_rows"
    # Inference.
    grammar: bool = False  # write only what may follow; the original writes what it likes
    # Training.
    dropout: float = 0.1
    target_tokens: int = 1024  # longer targets are left out and counted
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_over: Literal["sum", "tokens"] = "sum"  # T5X's sum over a batch, or its mean a token
    # Weight of a second loss, on what a head of the encoder says of each frame; 0: no such head.
    # What it says also counts when tokens are written, see `evidence.py`.
    frame_weight: float = 0.0
    onset_weight: float = 1.0  # of onsets and hits of drums in that loss, beside what sounds
    # Weight of the loss on tokens; 0: the decoder is left alone, which trains the encoder quickly.
    token_weight: float = 1.0
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.stack_frames < 1 or self.codec.segment_frames % self.stack_frames:
            raise ConfigError(
                f"stack_frames is {self.stack_frames}; it must be at least 1 and divide a segment "
                f"of {self.codec.segment_frames} frames."
            )
        if self.codec.frames_per_second != self.frontend.frames_per_s:
            raise ConfigError(
                f"the codec counts {self.codec.frames_per_second:g} frames a second and the "
                f"front-end makes {self.frontend.frames_per_s:g}; they must agree."
            )

        if not (self.frame_weight or self.token_weight):
            raise ConfigError("frame_weight and token_weight are both 0; nothing would be learned.")

    @property
    def transformer(self) -> TransformerConfig:
        """The network: T5 1.1 with sinusoids, frames in, tokens out."""
        return form(
            "mt3",
            vocab_size=vocabulary_of(self.codec).rows,
            d_model=self.d_model,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            mlp_dim=self.mlp_dim,
            num_encoder_layers=self.num_encoder_layers,
            num_decoder_layers=self.num_decoder_layers,
            input_dim=(self.stem_units if self.stem else self.frontend.num_bins)
            * self.stack_frames,
            dropout=self.dropout,
            policy=self.policy,
        )

    @property
    def segment_samples(self) -> int:
        """Samples that are heard at once."""
        return self.codec.segment_frames * self.frontend.hop_length

    def num_frames(self, num_samples: int) -> int:
        """Frames of a segment of so many samples: each begins inside, all positions are full."""
        return self.num_positions(num_samples) * self.stack_frames

    def num_positions(self, num_samples: int) -> int:
        """Positions that the encoder reads of so many samples."""
        return -(-num_samples // (self.frontend.hop_length * self.stack_frames))


def get_config(variant: str = "mt3") -> MT3Config:
    """The config of a variant.

    mt3, ismir2021 and base are the authors' (base is their ismir2022); mini is made to learn much
    from little, small is MT3's size with mini's habits, tiny is for tests. Raises ConfigError for
    another name.
    """
    makers = {
        "mt3": MT3Config,
        "ismir2021": lambda: MT3Config(codec=codec_config("ismir2021")),
        "base": _base,
        "small": _small,
        "mini": _mini,
        "tiny": _tiny,
    }
    if variant not in makers:
        raise ConfigError(f"mt3 has no variant {variant!r}; choose one of {', '.join(makers)}.")
    return makers[variant]()


def _base() -> MT3Config:
    return MT3Config(
        codec=codec_config("ismir2022"),
        d_model=768,
        num_heads=12,
        mlp_dim=2048,
        num_encoder_layers=12,
        num_decoder_layers=12,
    )


def _language(segment_frames: int, max_tokens: int, frames_per_s: float = 125.0) -> CodecConfig:
    """MT3's language without its quirks, and without the words that a segment cannot need."""
    language = replace(codec_config("mt3", faithful=False), frames_per_second=frames_per_s)
    steps = math.ceil(segment_frames * language.steps_per_second / frames_per_s)
    return replace(
        language,
        segment_frames=segment_frames,
        max_tokens=max_tokens,
        max_shift_steps=steps,
        extra_tokens=0,
    )


def _small() -> MT3Config:
    return replace(
        MT3Config(),
        codec=_language(256, 1024),
        frontend=replace(preset("mt3"), mean=-2.0, scale=4.0),
        padding="silence",
        loss_over="tokens",
        target_tokens=512,
        frame_weight=0.2,
    )


def _mini() -> MT3Config:
    # The front-end and the convolutions of `onsets_frames.small`, so that its weights can begin
    # where they ended; frames of 32 ms make an encoder position four times as cheap a second, and
    # three decoder layers are what a token costs at inference.
    frontend = preset("onsets_frames")
    return replace(
        _small(),
        frontend=frontend,
        codec=replace(_language(64, 1024, frontend.frames_per_s), granularity="midi_class"),
        stem=(16, 16, 32),
        d_model=256,
        num_heads=4,
        mlp_dim=768,
        num_encoder_layers=4,
        num_decoder_layers=3,
        target_tokens=256,
        dropout=0.0,
        grammar=True,
    )


def _tiny() -> MT3Config:
    return replace(
        _small(),
        codec=_language(64, 128),
        frontend=replace(preset("mt3"), num_bins=48, mean=-2.0, scale=4.0),
        d_model=32,
        num_heads=2,
        head_dim=16,
        mlp_dim=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        target_tokens=64,
        dropout=0.0,
    )
