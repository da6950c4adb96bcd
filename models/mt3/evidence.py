"""What the encoder itself hears, told to the decoder at each token it writes.

A head on the encoder says, frame by frame, which notes begin, sound and end, on which instruments
(`Heard`). Labels for it need no alignment, so it learns many times faster than attention learns
where to look; and joining the two while decoding is known from speech (S. Watanabe et al., "Hybrid
CTC/Attention Architecture for End-to-End Speech Recognition", IEEE JSTSP 2017). Here the tokens
before say which time, instrument and kind of event is meant, and the head's log-probabilities of
exactly those are added to the logits of the next token with a handful of learned weights:

- a time: how likely an event is at its frame and at none between; the end: that none is left;
- a pitch that begins, ends or goes on: onset by instrument family, end of sounding, sounding;
- a program: that a note of it begins, or sounds; a drum: that it is hit.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from musicjax.nn.axes import axes
from musicjax.notes.vocabulary import EOS, SPECIAL_TOKENS, CodecConfig, TokenClass, vocabulary_of

FAMILIES = 16  # of General MIDI, eight programs each
ROLLS = ("onset", "frame", "drum", "entry", "playing")  # of 128 pitches, keys or programs each
NUM_ROLLS = len(ROLLS) + FAMILIES  # and onsets by family
CELLS = 128
_TIE, _OFF, _ON = 0, 1, 2  # what a pitch would mean
_PAST = -10.0  # of times that have gone by
_SURE = 1e-4  # no event is more certain than this much short of 1

# Weights at the start; all are learned.
_START = {
    "on_family": 0.7,
    "on_any": 0.3,
    "off_sounds": 0.5,
    "off_stops": 0.5,
    "tie_sounds": 0.7,
    "tie_begins": -0.2,
    "drum": 1.0,
    "entry": 0.7,
    "playing": 0.3,
    "event": 1.0,
    "silence": 1.0,
    "again": -2.0,  # another event at a position that has told one
    "end": 1.0,
    "beside": -2.0,
    "event_onset": 0.0,
    "event_drum": 0.0,
    "event_off": -0.5,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Heard:
    """Log-probabilities of a segment, laid out for looking up. float32.

    on_any, off, tie, drum, entry, playing (B, S, 128): of a pitch beginning, ending, going on; a
    drum key hit; a program beginning a note or sounding. on (B, S, 16, 128): of a pitch beginning
    in a family. event (B, S): of anything happening; silence (B, S + 1): of nothing happening
    before a position, summed.
    """

    on: Float[Array, "B S C P"]
    on_any: Float[Array, "B S P"]
    off: Float[Array, "B S P"]
    tie: Float[Array, "B S P"]
    drum: Float[Array, "B S P"]
    entry: Float[Array, "B S P"]
    playing: Float[Array, "B S P"]
    event: Float[Array, "B S"]
    silence: Float[Array, "B S1"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Told:
    """What the tokens so far say of the next one, a value a token: the step of the last shift (-1:
    none), what a pitch would mean (tie 0, end 1, beginning 2) and the last program. int32."""

    step: Int[Array, "*B"]
    meaning: Int[Array, "*B"]
    program: Int[Array, "*B"]

    @classmethod
    def nothing(cls, batch: int) -> "Told":
        """Before the first token."""
        zeros = jnp.zeros((batch,), jnp.int32)
        return cls(zeros - 1, zeros, zeros)


def _tables(codec: CodecConfig) -> tuple[np.ndarray, np.ndarray]:
    vocabulary = vocabulary_of(codec)
    return vocabulary.classes, vocabulary.values


def told_after(told: Told, tokens: Int[Array, "B"], codec: CodecConfig) -> Told:
    """What is known when one token more has been read, a row."""
    classes, values = (jnp.asarray(table)[tokens] for table in _tables(codec))
    meaning = told.meaning
    for kind, means in ((TokenClass.TIE, _OFF), (TokenClass.OFF, _OFF), (TokenClass.ON, _ON)):
        meaning = jnp.where(classes == kind, means, meaning)
    return Told(
        jnp.where(classes == TokenClass.SHIFT, values, told.step),
        meaning,
        jnp.where(classes == TokenClass.PROGRAM, values, told.program),
    )


def told_all(tokens: Int[Array, "B T"], codec: CodecConfig) -> Told:
    """The same at every token of a row, itself included: values (B, T)."""
    classes, values = (jnp.asarray(table)[tokens] for table in _tables(codec))
    places = jnp.arange(tokens.shape[1])

    def last(of: Int[Array, "B T"], where: Array, before: int = 0) -> Int[Array, "B T"]:
        """`of` at the last token where `where` is true, `before` until there was one."""
        at = jax.lax.cummax(jnp.where(where, places, -1), axis=1)
        return jnp.where(at >= 0, jnp.take_along_axis(of, jnp.maximum(at, 0), axis=1), before)

    means = jnp.where(classes == TokenClass.ON, _ON, _OFF)
    told = (classes == TokenClass.TIE) | (classes == TokenClass.OFF) | (classes == TokenClass.ON)
    return Told(
        last(values, classes == TokenClass.SHIFT, -1),
        last(means, told),
        last(values, classes == TokenClass.PROGRAM),
    )


class Evidence(nnx.Module):
    """The learned weights and how they are used; adds to logits, knows nothing of the network."""

    def __init__(self, codec: CodecConfig, frames_per_position: int):
        self.weights = nnx.Param(jnp.array(list(_START.values())), **axes(None))
        steps = np.arange(codec.max_shift_steps + 1)
        rate = codec.frames_per_second / codec.steps_per_second / frames_per_position
        positions = -(-codec.segment_frames // frames_per_position)
        at = np.minimum(np.floor(steps * rate + 1e-6).astype(int), positions - 1)
        self.position_of_step = tuple(at.tolist())
        self.codec = codec

    def _weight(self, name: str) -> Array:
        return self.weights[...][list(_START).index(name)]

    def heard(self, logits: Float[Array, "B S R P"]) -> Heard:
        """From the head's logits, one row of 128 for each of `ROLLS` and each family."""
        yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        sounds = yes[:, :, 1]
        stopped = no[:, :, 1]
        stopping = jnp.concatenate([stopped[:, 1:], stopped[:, -1:]], axis=1)  # one position on
        off = self._weight("off_sounds") * sounds + self._weight("off_stops") * stopping
        tie = self._weight("tie_sounds") * sounds + self._weight("tie_begins") * yes[:, :, 0]
        happens = jnp.stack(
            [
                self._weight("event_onset") + yes[:, :, 0].max(-1),
                self._weight("event_drum") + yes[:, :, 2].max(-1),
                self._weight("event_off") + (sounds + stopping).max(-1),
            ]
        )
        event = jnp.minimum(jax.nn.logsumexp(happens, axis=0), -_SURE)
        nothing = jnp.log(-jnp.expm1(event))
        silence = jnp.pad(jnp.cumsum(nothing, axis=1), ((0, 0), (1, 0)))
        return Heard(
            on=self._around(yes[:, :, len(ROLLS) :]),
            on_any=self._around(yes[:, :, 0]),
            off=self._around(off),
            tie=tie,
            drum=self._around(yes[:, :, 2]),
            entry=self._around(yes[:, :, 3]),
            playing=self._around(yes[:, :, 4]),
            event=event,
            silence=silence,
        )

    def _around(self, x: Float[Array, "B S *rest"], axis: int = 1) -> Float[Array, "B S *rest"]:
        """Here, or less surely one position away: times are rounded."""
        x = jnp.moveaxis(x, axis, 0)
        edge, beside = jnp.full_like(x[:1], -30.0), self._weight("beside")
        before, after = jnp.concatenate([edge, x[:-1]]), jnp.concatenate([x[1:], edge])
        near = jax.nn.logsumexp(jnp.stack([x, before + beside, after + beside]), axis=0)
        return jnp.moveaxis(near, 0, axis)

    def __call__(self, heard: Heard, told: Told) -> Float[Array, "B T V"]:
        """What to add to the logits of the tokens that follow, `told` (B, T)."""
        steps = len(self.position_of_step)
        at = jnp.asarray(self.position_of_step)[jnp.clip(told.step, 0, steps - 1)]
        shift, end = self._times(heard)
        tables = (heard.on_any, heard.off, heard.tie, heard.drum, heard.entry, heard.playing)
        # Looked up by a product: its gradient is a product again, and not a slow scatter.
        place = jax.nn.one_hot(at, heard.event.shape[1])
        looked = jnp.einsum(
            "bts,bsx->btx",
            place,
            jnp.concatenate([end[..., None], shift, *tables], axis=-1),
            precision=jax.lax.Precision.HIGHEST,
        )
        widths = np.cumsum([1, steps, *[CELLS] * len(tables)])[:-1].tolist()
        end, shift, on_any, off, tie, drum, entry, playing = jnp.split(looked, widths, axis=-1)
        rows = jnp.arange(len(at))[:, None]
        meaning = told.meaning[..., None]
        on = self._weight("on_family") * heard.on[rows, at, told.program // 8]
        on = on + self._weight("on_any") * on_any
        pitch = jnp.where(meaning == _ON, on, jnp.where(meaning == _OFF, off, tie))
        program = self._weight("entry") * jnp.where(meaning == _TIE, 0.0, entry)
        program = program + self._weight("playing") * playing
        shift = jnp.where(jnp.arange(steps) <= told.step[..., None], _PAST, shift)
        return self._laid_out(end, shift, pitch, program, self._weight("drum") * drum)

    def _times(self, heard: Heard) -> tuple[Float[Array, "B S K"], Float[Array, "B S"]]:
        """From each position: how likely the next event is at each step, and that there is none."""
        quiet = heard.silence[:, None] - heard.silence[:, 1:, None]  # (B, S, S + 1)
        before = self._weight("silence") * jnp.minimum(quiet[..., :-1], 0.0)
        coming = self._weight("event") * heard.event[:, None] + before
        ahead = np.arange(before.shape[2]) - np.arange(before.shape[1])[:, None]
        coming = jnp.where(ahead < 0, 3 * _PAST, coming + self._weight("again") * (ahead == 0))
        shift = self._around(coming, axis=2)[..., jnp.asarray(self.position_of_step)]
        return shift, self._weight("end") * quiet[..., -1]

    def _laid_out(
        self, end: Array, shift: Array, pitch: Array, program: Array, drum: Array
    ) -> Array:
        """The parts where their tokens stand in the vocabulary, zeros elsewhere."""
        vocabulary = vocabulary_of(self.codec)
        special = jnp.pad(end, ((0, 0), (0, 0), (EOS, SPECIAL_TOKENS - EOS - 1)))
        between = jnp.zeros((*end.shape[:2], vocabulary.program(0) - vocabulary.velocity(0)))
        parts = [special, shift, pitch, between, program, drum]
        whole = jnp.concatenate(parts, axis=-1)
        return jnp.pad(whole, ((0, 0), (0, 0), (0, vocabulary.rows - whole.shape[-1])))
