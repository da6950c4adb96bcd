"""MT3: a Transformer that hears two seconds and writes the notes of all instruments as tokens.

J. Gardner, I. Simon, E. Manilow, C. Hawthorne, J. Engel, "MT3: Multi-Task Multitrack Music
Transcription", ICLR 2022; and the piano model before it, C. Hawthorne et al., "Sequence-to-Sequence
Piano Transcription with Transformers", ISMIR 2021. A recording is cut into segments that do not
overlap, each is heard alone and written down token by token (`musicjax.notes.codec`), and a segment
begins by naming the notes that go on from the one before. Forms differ in `MT3Config` only.

Differences: of the original none with the published configs. The forms for training anew
(`mini`, `small`) may begin with convolutions, read several frames as one position, hear silence
where a recording has ended, and have a head on the encoder that is trained beside the tokens and
heard when they are written (`evidence.py`); `card.md` lists how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.audio.frontend import spectrogram
from musicjax.decode import GenerateConfig, TableGrammar
from musicjax.errors import AudioError
from musicjax.models.mt3.config import MT3Config
from musicjax.models.mt3.evidence import (
    CELLS,
    IS_ONSET,
    NUM_ROLLS,
    ROLLS,
    Evidence,
    Heard,
    Told,
)
from musicjax.nn.attention import Cache
from musicjax.nn.axes import linear
from musicjax.nn.conv_stack import ConvStack
from musicjax.nn.cross_entropy import cross_entropy
from musicjax.nn.transformer import Transformer, shift_right
from musicjax.notes.codec import Codec
from musicjax.notes.vocabulary import EOS, PAD
from musicjax.types import Key

_RARELY = -4.0  # log-odds of a cell before training: few of the notes that there are sound


def _frame_head(config: MT3Config, rngs: nnx.Rngs) -> nnx.Linear:
    head: Any = linear(
        config.d_model,
        NUM_ROLLS * CELLS,
        ("embed", "pitch"),
        bias=True,
        init=nnx.initializers.lecun_normal(),
        policy=config.policy,
        rngs=rngs,
    )
    head.bias[...] = jnp.full_like(head.bias[...], _RARELY)
    return head


def _stem(config: MT3Config, rngs: nnx.Rngs) -> ConvStack | None:
    if config.stem is None:
        return None
    bins = config.frontend.num_bins
    return ConvStack(bins, config.stem, config.stem_units, policy=config.policy, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HearingCache:
    """The state of writing: the Transformer's, what the encoder's head heard, what was told."""

    text: Cache
    heard: Heard
    told: Told

    @property
    def position(self) -> Int[Array, "B"]:
        """Tokens read, a row."""
        return self.text.position

    @property
    def max_length(self) -> int:
        """Tokens that a row has room for."""
        return self.text.max_length

    def resized(self, max_length: int) -> "HearingCache":
        """The same rows with other room."""
        return replace(self, text=self.text.resized(max_length))

    def take(self, rows: Int[Array, "R"]) -> "HearingCache":
        """These rows, in this order."""
        heard, told = jax.tree.map(lambda x: x[rows], (self.heard, self.told))
        return HearingCache(self.text.take(rows), heard, told)

    def put(self, rows: Int[Array, "R"], other: "HearingCache") -> "HearingCache":
        """This with `rows` replaced by those of `other`; a row number past the end is left out."""
        heard, told = jax.tree.map(
            lambda x, new: x.at[rows].set(new, mode="drop"),
            (self.heard, self.told),
            (other.heard, other.told),
        )
        return HearingCache(self.text.put(rows, other.text), heard, told)


class MT3(nnx.Module):
    """The network. Protocol of the zoo: `__call__` and `activations`; of models that write tokens
    (`musicjax.infer.sequences`): `segment_samples`, `generation`, `grammar`, `prefill`, `step`.
    """

    def __init__(self, config: MT3Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = _stem(config, rngs)
        self.transformer = Transformer(config.transformer, rngs=rngs)
        if not config.token_weight:  # nothing untrained may have a say in what is written
            head: Any = self.transformer.head
            head[...] = jnp.zeros_like(head[...])
        heard = config.frame_weight > 0
        self.frame_head = _frame_head(config, rngs) if heard else None
        self.evidence = Evidence(config.codec, config.stack_frames) if heard else None

    def features(
        self, audio: Float[Array, "B N"], lengths: Int[Array, "B"] | None = None
    ) -> Float[Array, "B T F"]:
        """Log-mel frames of segments, each made from its own samples alone; float32.

        lengths: samples of each that are sound. Where the recording has ended there are rows of
        zeros or silence, as the config says. T is a whole number of positions.
        """
        config = self.config
        frames = config.num_frames(audio.shape[-1])
        missing = frames * config.frontend.hop_length - audio.shape[-1]
        audio = jnp.pad(audio, ((0, 0), (0, missing)))
        if config.padding == "silence":
            lengths = None
        return spectrogram(audio, config.frontend, lengths=lengths)[:, :frames]

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B S D"]:
        """What the decoder attends to: the encoder on frames, `stack_frames` of them a position.

        mask is True at frames that exist, the first ones; the original uses none.
        """
        stack = self.config.stack_frames
        if self.stem is not None:
            features = self.stem(features, mask=mask, train=train)
        batch, frames, bins = features.shape
        missing = -frames % stack
        features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))
        stacked = features.reshape(batch, -1, stack * bins)
        positions = None if mask is None else mask[:, ::stack]
        return self.transformer.encode(stacked, positions, train=train, key=key)

    def rolls(self, encoded: Float[Array, "B S D"]) -> Float[Array, "B S R P"]:
        """Logits of the encoder's own head, rows of `ROLLS` and then one a family; float32."""
        head: Any = self.frame_head
        logits = head(encoded).astype(jnp.float32)
        return logits.reshape(*encoded.shape[:2], NUM_ROLLS, CELLS)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B S ..."]]:
        """What the encoder makes of segments, float32; the notes come from tokens, see `decode`.

        A probability (B, S, 128) for each of `ROLLS`, where there is a head for them; else
        encoded: the hidden state (B, S, D). frames: how many frames of each item are sound.
        """
        lengths = None if frames is None else frames * self.config.frontend.hop_length
        encoded = self(self.features(audio, lengths))
        if self.frame_head is None:
            return {"encoded": encoded.astype(jnp.float32)}
        heard = jax.nn.sigmoid(self.rolls(encoded))
        return {name: heard[:, :, i] for i, name in enumerate(ROLLS)}

    def logits(
        self,
        tokens: Int[Array, "B T"],
        encoded: Float[Array, "B S D"],
        heard: Heard | None,
        *,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each of `tokens`, all of them given; float32."""
        logits = self.transformer.decode(tokens, encoded, train=train, key=key)
        if heard is None or self.evidence is None:
            return logits
        return logits + self.evidence(heard, self.evidence.after_all(tokens))

    # Writing tokens -----------------------------------------------------------------------------

    @property
    def segment_samples(self) -> int:
        """Samples of one segment."""
        return self.config.segment_samples

    @property
    def generation(self) -> GenerateConfig:
        """Greedy, as published (its beam search with one beam gives the same)."""
        return GenerateConfig(
            max_length=self.config.codec.max_tokens,
            start_token=PAD,
            end_tokens=(EOS,),
            pad_token=PAD,
        )

    @property
    def grammar(self) -> TableGrammar | None:
        """What may follow what, if the config asks for it."""
        if not self.config.grammar:
            return None
        tables = Codec(self.config.codec).grammar()
        return TableGrammar(
            tables.next_state, tables.allowed, tables.token_class, rising=tables.shift_step
        )

    def prefill(
        self, audio: Float[Array, "B N"], lengths: Int[Array, "B"], max_length: int
    ) -> Cache | HearingCache:
        """Hear segments, and be ready to write up to `max_length` tokens of each."""
        encoded = self(self.features(audio, lengths))
        cache = self.transformer.init_cache(encoded, max_length=max_length)
        if self.evidence is None:
            return cache
        heard = self.evidence.heard(self.rolls(encoded))
        return HearingCache(cache, heard, Told.nothing(len(audio)))

    def step(
        self, tokens: Int[Array, "B"], cache: Cache | HearingCache
    ) -> tuple[Float[Array, "B V"], Cache | HearingCache]:
        """Read one token a row; logits of the next one."""
        if isinstance(cache, Cache):
            return self.transformer.step(tokens, cache)
        evidence: Any = self.evidence
        logits, text = self.transformer.step(tokens, cache.text)
        told = evidence.after(cache.told, tokens)
        more = evidence(cache.heard, jax.tree.map(lambda x: x[:, None], told))
        return logits + more[:, 0], HearingCache(text, cache.heard, told)


# Loss ------------------------------------------------------------------------------------------


def loss(
    model: MT3, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The cost of the tokens of a batch, and its parts. float32.

    batch: audio (B, N) float32 in -1..1 or int16, and what `targets` gives, stacked. token:
    cross-entropy, summed or a mean over tokens (`loss_over`); z: T5's z-loss; frame: the encoder's
    head, binary cross-entropy summed over cells, onsets weighted, mean a position; each is
    weighted. left_out, which is no part of the sum: the share of segments whose tokens were too
    many.
    """
    config, audio, tokens = model.config, batch["audio"], batch["tokens"]
    if audio.dtype == jnp.int16:
        audio = audio.astype(jnp.float32) / 32768.0
    if tokens.shape != (len(audio), config.target_tokens):
        raise AudioError(
            f"tokens have shape {tokens.shape} but {len(audio)} segments have room for "
            f"{(len(audio), config.target_tokens)}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    keys = (None, None) if key is None or not train else tuple(jax.random.split(key))
    encoded = model(model.features(audio), train=train, key=keys[0])
    parts: dict[str, Array] = {}
    heard = None
    if config.frame_weight:
        label = batch["rolls"].astype(jnp.float32)
        seen = model.rolls(encoded)
        cell = jax.nn.softplus(seen) - label * seen
        rows = config.frame_weight * cell.sum(3).mean((0, 1))
        weights = np.where(IS_ONSET, config.onset_weight, 1.0)
        parts["frame"] = (rows * weights).sum()
        evidence: Any = model.evidence
        heard = evidence.heard(seen) if config.token_weight else None
    if config.token_weight:
        read = shift_right(tokens, config.transformer.start_id)
        logits = model.logits(read, encoded, heard, train=train, key=keys[1])
        cost, extra = cross_entropy(
            logits, tokens, z_loss=config.z_loss, label_smoothing=config.label_smoothing
        )
        said = tokens != PAD
        count = jnp.maximum(said.sum(), 1) if config.loss_over == "tokens" else 1
        weight = config.token_weight / count
        parts["token"] = weight * jnp.where(said, cost - extra, 0).sum()
        parts["z"] = weight * jnp.where(said, extra, 0).sum()
    total = sum(parts.values(), jnp.zeros(()))
    return total, {**parts, "left_out": batch["left_out"].astype(jnp.float32).mean()}
