"""LP-MusicCaps: ten seconds of music to a sentence about them.

S. Doh, K. Choi, J. Lee, J. Nam, "LP-MusicCaps: LLM-Based Pseudo Music Captioning", ISMIR 2023.
A log-mel spectrogram goes through six convolutions in time, which leave one position for every 32
frames; fixed sinusoids are added, and a Transformer reads the positions and writes the sentence.
Forms differ in `CaptionerConfig` only: the published one has BART's Transformer, `small` has T5's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.config import FrontendConfig
from musicjax.audio.frontend import spectrogram
from musicjax.audio.presets import preset
from musicjax.decode import BeamConfig, GenerateConfig
from musicjax.errors import ConfigError, DataError
from musicjax.nn import Transformer, TransformerConfig, form, shift_right, sinusoids
from musicjax.nn.attention import Cache
from musicjax.nn.cross_entropy import cross_entropy
from musicjax.text import Tokenizer, open_tokenizer, read_row, token_row
from musicjax.types import Key, Policy

# Sizes of facebook/bart-base, whose config the published model takes (its weights it does not).
_BART_BASE = form(
    "bart",
    vocab_size=50_265,
    d_model=768,
    num_heads=12,
    head_dim=64,
    mlp_dim=3072,
    num_encoder_layers=6,
    num_decoder_layers=6,
    max_positions=1024,
)


@dataclass(frozen=True)
class CaptionerConfig:
    """Everything that distinguishes one form from another. Hashable, static.

    The defaults are the published model.
    """

    frontend: FrontendConfig = preset("lp_musiccaps")  # noqa: RUF009 - frozen
    clip_s: float = 10.0  # what is heard at once
    strides: tuple[int, ...] = (1, 2, 2, 2, 2, 2)  # of the convolutions, each three frames wide
    # The spectrogram in dB as the network reads it: (dB + shift) * scale.
    db_shift: float = 0.0
    db_scale: float = 1.0
    sinusoids: bool = True  # added to what the convolutions give
    transformer: TransformerConfig = _BART_BASE
    # "bytes", "words", or a file or folder (`musicjax.text.open_tokenizer`).
    tokenizer: str = "tokenizer.json"
    max_tokens: int = 128  # of a sentence, with the tokens that begin and end it
    label_smoothing: float = 0.1
    # How sentences are found where the call does not say otherwise. Beams are the paper's; the
    # other two come with the config of facebook/bart-base.
    num_beams: int = 5
    no_repeat_ngram: int = 3
    early_stopping: bool = True
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.max_tokens < 3:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}; a sentence with its two ends needs 3 or more."
            )
        positions = self.transformer.max_positions
        if self.transformer.positions == "learned" and self.max_tokens > positions:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}, but the decoder learns {positions} positions; "
                "make the one smaller or the other larger."
            )

    @property
    def clip_samples(self) -> int:
        """Samples of one clip."""
        return round(self.clip_s * self.frontend.sample_rate)

    @property
    def special(self) -> tuple[int | None, ...]:
        """Ids that stand for no text."""
        t = self.transformer
        return (t.pad_id, t.bos_id, t.eos_id, t.start_id)


def get_config(variant: str = "base") -> CaptionerConfig:
    """The config of a variant.

    base: the published model, 148,617,561 parameters. small: T5 1.1's Transformer at the size of
    MT3, over bytes, to be trained anew. tiny: BART's form at a width for tests, over the words of
    the built-in sentences. tiny_t5: the same in T5's form.
    """
    new: dict[str, Any] = {"db_shift": 40.0, "db_scale": 1 / 40, "no_repeat_ngram": 0}
    small = {
        "d_model": 32,
        "num_heads": 2,
        "head_dim": 16,
        "mlp_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "vocab_size": 128,
    }
    tiny: dict[str, Any] = {**new, "tokenizer": "words", "max_tokens": 40, "num_beams": 2}
    variants = {
        "base": lambda: CaptionerConfig(),
        "small": lambda: CaptionerConfig(
            transformer=form("t5.1.1", vocab_size=260),
            sinusoids=False,
            tokenizer="bytes",
            max_tokens=400,
            **new,
        ),
        "tiny": lambda: CaptionerConfig(
            transformer=form("bart", max_positions=64, **small), **tiny
        ),
        "tiny_t5": lambda: CaptionerConfig(
            transformer=form("t5.1.1", **small), sinusoids=False, **tiny
        ),
    }
    if variant not in variants:
        raise ConfigError(
            f"lp_musiccaps has no variant {variant!r}; choose one of {', '.join(variants)}."
        )
    return variants[variant]()


class Captioner(nnx.Module):
    """The network: log-mel frames to what the decoder attends to, and a decoder of tokens.

    Protocol of the zoo: `__call__` and `activations`; of models that write tokens
    (`musicjax.infer.sequences`): `segment_samples`, `generation`, `grammar`, `prefill`, `step`.
    """

    def __init__(self, config: CaptionerConfig, *, rngs: nnx.Rngs):
        self.config = config
        text = replace(config.transformer, policy=config.policy)
        make = partial(
            nnx.Conv,
            kernel_size=(3,),
            padding=((1, 1),),
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # PyTorch's
            dtype=config.policy.compute,
            param_dtype=config.policy.param,
            rngs=rngs,
        )
        widths = [config.frontend.num_bins, *[text.d_model] * len(config.strides)]
        self.convolutions = nnx.List(
            [
                make(a, b, strides=(stride,))
                for a, b, stride in zip(widths, widths[1:], config.strides, strict=False)
            ]
        )
        self.transformer = Transformer(text, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B S D"]:
        """What the decoder attends to, a position for every 32 frames (begun); float32.

        features: decibels. mask is True at frames that exist, the first ones; the original has
        none and hears the silence that fills a short clip up.
        """
        x, mask = self.positions(features, mask)
        return self.transformer.encode(x, mask, train=train, key=key).astype(jnp.float32)

    def positions(
        self, features: Float[Array, "B T F"], mask: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"] | None]:
        """What the encoder reads, and which positions of it exist."""
        config = self.config
        x = (features + config.db_shift) * config.db_scale

        def kept(x: jax.Array) -> jax.Array:
            return x if mask is None else jnp.where(mask[..., None], x, 0)

        with self._precision():
            for convolution, stride in zip(self.convolutions, config.strides, strict=True):
                x = jax.nn.gelu(convolution(kept(x)), approximate=False)
                mask = None if mask is None else mask[:, ::stride]
        x = kept(x).astype(jnp.float32)
        if config.sinusoids:
            x = x + sinusoids(x.shape[1], x.shape[2])
        return x, mask

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B S D"]]:
        """What the encoder makes of clips, as `encoded`; float32. Sentences come from tokens.

        frames: how many frames of each clip are sound rather than padding (all if None).
        """
        features = spectrogram(audio, self.config.frontend)
        mask = None
        if frames is not None:
            mask = jnp.arange(features.shape[1]) < frames[:, None]
        return {"encoded": self(features, mask=mask)}

    # Writing sentences --------------------------------------------------------------------------

    @property
    def segment_samples(self) -> int:
        """Samples of one clip."""
        return self.config.clip_samples

    @property
    def grammar(self) -> None:
        """Any token may follow any other."""
        return None

    def prefill(
        self, audio: Float[Array, "B N"], lengths: Int[Array, "B"] | None, max_length: int
    ) -> Cache:
        """Hear clips, and be ready to write up to `max_length` tokens about each.

        lengths, the samples that are sound, change nothing: silence is heard, as published.
        """
        del lengths
        encoded = self(spectrogram(audio, self.config.frontend))
        return self.transformer.init_cache(encoded, max_length=max_length)

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Read one token a row; logits of the next one."""
        return self.transformer.step(tokens, cache)

    @property
    def generation(self) -> GenerateConfig:
        """Greedy, with the published rules."""
        return self.rules()

    def rules(self, **settings: Any) -> GenerateConfig:
        """How tokens are chosen: the published rules, and `settings` of GenerateConfig over them.

        The start token counts in the published length of 128, and does not in ours.
        """
        config, text = self.config, self.config.transformer
        rules: dict[str, Any] = {
            "max_length": config.max_tokens - 1,
            "min_length": 1,
            "start_token": text.start_id,
            "end_tokens": (text.eos_id,),
            "pad_token": text.pad_id,
            "first_token": text.bos_id,
            "end_at_limit": True,
            "no_repeat_ngram": config.no_repeat_ngram,
        }
        return GenerateConfig(**rules | settings)

    def beams(self, num_beams: int | None = None) -> BeamConfig:
        """How hypotheses are kept; None takes as many as the config says."""
        config = self.config
        return BeamConfig(
            num_beams=num_beams or config.num_beams, early_stopping=config.early_stopping
        )

    def _precision(self) -> Any:
        precision = self.config.policy.matmul_precision
        return jax.default_matmul_precision(None if precision == "default" else precision)


# Sentences and tokens -----------------------------------------------------------------------


def tokenizer_of(config: CaptionerConfig) -> Tokenizer:
    """The config's tokenizer. Raises ConfigError when it is not there or is too large."""
    tokenizer = open_tokenizer(config.tokenizer)
    if tokenizer.size > config.transformer.vocab_size:
        raise ConfigError(
            f"the tokenizer {config.tokenizer} has {tokenizer.size} ids and the model "
            f"{config.transformer.vocab_size}; give the tokenizer that the model was trained with."
        )
    return tokenizer


def targets(
    text: str, start_s: float, num_samples: int, config: CaptionerConfig
) -> dict[str, np.ndarray]:
    """A sentence as `tokens` (L,), int32, padded to L = `config.max_tokens`.

    One that does not fit is never cut: its row is padding, which costs nothing, and left_out ()
    uint8 is 1.
    """
    del start_s, num_samples
    ids = config.transformer
    tokenizer = tokenizer_of(config)
    row = token_row(
        tokenizer,
        text,
        config.max_tokens,
        bos_id=ids.bos_id,
        eos_id=ids.eos_id,
        pad_id=ids.pad_id,
    )
    return {"tokens": row, "left_out": np.array((row == ids.pad_id).all(), np.uint8)}


def decode(activations: Mapping[str, np.ndarray], config: CaptionerConfig) -> list[str]:
    """The sentences about a recording, one a clip.

    activations: `tokens` (clips, L), as the recording's captioning gives them; without them (the
    encoder alone was asked) there are no sentences.
    """
    if "tokens" not in activations:
        return []
    rows = np.asarray(activations["tokens"])
    if rows.ndim != 2:
        raise DataError(f"tokens have shape {rows.shape}; expected (clips, tokens).")
    tokenizer = tokenizer_of(config)
    return [read_row(tokenizer, row, special=config.special) for row in rows]


# Loss ---------------------------------------------------------------------------------------


def loss(
    model: Captioner, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the tokens in nats, the mean over all that are not padding. float32.

    batch: audio (B, N) float32 in -1..1 or int16, and what `targets` gives, stacked. Labels are
    smoothed as PyTorch does it, all tokens sharing `label_smoothing`; the entropy of the smoothed
    label is subtracted, which changes no gradient. left_out, which is no part of the sum: the share
    of sentences that were too long.
    """
    config, audio, tokens = model.config, batch["audio"], batch["tokens"]
    if audio.dtype == jnp.int16:
        audio = audio.astype(jnp.float32) / 32768.0
    keys = [None, None] if key is None else list(jax.random.split(key))
    encoded = model(spectrogram(audio, config.frontend), train=train, key=keys[0])
    text = config.transformer
    read = shift_right(tokens, text.start_id)
    logits = model.transformer.decode(read, encoded, train=train, key=keys[1])
    # Ours leaves the label itself out of those that share.
    smoothing = config.label_smoothing * (1 - 1 / text.vocab_size)
    cost, _ = cross_entropy(logits, tokens, label_smoothing=smoothing)
    counts = tokens != text.pad_id
    total = jnp.where(counts, cost, 0).sum() / jnp.maximum(counts.sum(), 1)
    return total, {"tokens": total, "left_out": batch["left_out"].astype(jnp.float32).mean()}
