"""What the encoder itself hears, told to the decoder at each token it writes.

A head on the encoder says, frame by frame, which notes begin and sound, on which families of
instruments, and which drums are hit. Labels for it need no alignment, so it learns many times
faster than attention learns where to look; and joining the two while decoding is known from speech
(S. Watanabe et al., "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", IEEE
JSTSP 2017). Here the language fixes an order of all that may happen at one moment: notes that end,
by program and pitch, notes that begin, likewise, drums by key. So the tokens before say how far in
this order the writer has come (`Told`), and with independent events

    P(next is e) = P(e) * product over the events between of (1 - P)

says how likely each next event is, from which follows the next token: a program or velocity if the
event needs another than was last said, else its pitch or key; a time or the end if nothing is left.
The logarithms are added to the decoder's logits with a few learned weights (`Evidence`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.nn.axes import axes
from musicjax.notes.vocabulary import CodecConfig, TokenClass, vocabulary_of

FAMILIES = 16  # of General MIDI, eight programs each
ROLLS = ("onset", "frame", "drum")  # of 128 pitches or keys each
NUM_ROLLS = len(ROLLS) + 2 * FAMILIES  # and onsets by family, then what sounds by family
IS_ONSET = (True, False, True) + (True,) * FAMILIES + (False,) * FAMILIES  # of each roll
CELLS = 128
_START, _ENDING, _BEGINNING, _DRUMMING = range(4)  # how far the order of a moment has gone
_UNSAID = 0  # no velocity has been said; otherwise _ENDING or _BEGINNING
_NO_PROGRAM = -1
_PROGRAM_SAID, _VELOCITY_SAID = 1, 2  # of an event that is still to be named
_NEVER = -8.0  # log-probability of what the order does not allow; no verdict is final
_SURE = 1e-3  # no event is more certain than this much short of 1
_ECHO = -4.0  # of an event that its neighbour tells more surely
_BESIDE = -2.0  # of events one position away, since times are rounded
_FADING = float(np.log(0.05))  # the least chance of what sounds unheard to end
# A note is over where it sounds by less than this part of the most that it did, which fades by half
# in so many seconds (a string dies away slowly, a damper stops it at once), or by these log-odds
# hardly at all; and how surely.
_FALL, _HALF_LIFE_S, _SILENT = 0.5, 0.54, -2.9
_FIRM, _STEEP = 4.0, 4.0
_SHARPER = 2.0  # a pitch belongs to its likeliest families

_WEIGHTS = {
    "event": 1.0,  # of times: that something happens then
    "silence": 1.0,  # and nothing before
    "again": -2.0,  # another time at a position that has told one
    "end": 1.0,
    "nothing_left": 1.0,  # of times and the end: that this moment is told
    "program": 1.0,
    "velocity": 1.0,
    "pitch": 1.0,
    "drum": 1.0,
    "tie": 1.0,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Heard:
    """Log-probabilities of a segment, laid out for looking up; float32.

    begins (B, S + 1, C, P): a note begins, by position, family and pitch; the last row is of those
    that go on from the segment before. no_begin: none up to a pitch and with it, summed. drum,
    no_drum (B, S, P): likewise for drum keys. ends (B, S, P): a note that sounds ends. untold
    (B, S): of no beginning and no drum at a position.
    """

    begins: Float[Array, "B S1 C P"]
    no_begin: Float[Array, "B S1 C P"]
    drum: Float[Array, "B S P"]
    no_drum: Float[Array, "B S P"]
    ends: Float[Array, "B S P"]
    untold: Float[Array, "B S"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Told:
    """What the tokens so far say of the next one; int32, one a row.

    step: of the last shift, -1 if none. tied: 1 once the tie section has ended. velocity: 0 unsaid,
    1 for ends, 2 for beginnings. program: the last one, -1 if none. pending: whether a program (1)
    or velocity (2) has been said of an event to come. kind, family, pitch: the last event of this
    moment (kind 0 if none), what lies before which in order is told. sounding: notes that have
    begun and not ended, by family and pitch.
    """

    step: Int[Array, "*B"]
    tied: Int[Array, "*B"]
    velocity: Int[Array, "*B"]
    program: Int[Array, "*B"]
    pending: Int[Array, "*B"]
    kind: Int[Array, "*B"]
    family: Int[Array, "*B"]
    pitch: Int[Array, "*B"]
    sounding: Bool[Array, "*B C P"]

    @classmethod
    def nothing(cls, batch: int) -> "Told":
        """Before the first token."""
        zeros = jnp.zeros((batch,), jnp.int32)
        silence = jnp.zeros((batch, FAMILIES, CELLS), bool)
        none = zeros + _NO_PROGRAM
        return cls(zeros - 1, zeros, zeros, none, zeros, zeros, zeros, zeros, silence)


def _positions(codec: CodecConfig, frames_per_position: int) -> np.ndarray:
    """The encoder's position that holds each step."""
    steps = np.arange(codec.max_shift_steps + 1)
    rate = codec.frames_per_second / codec.steps_per_second / frames_per_position
    positions = -(-codec.segment_frames // frames_per_position)
    return np.minimum(np.floor(steps * rate + 1e-6).astype(int), positions - 1)


def _not(log_probability: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log(1 - p) from log p, neither certain nor impossible."""
    return jnp.log(-jnp.expm1(jnp.minimum(log_probability, -_SURE)))


class Evidence(nnx.Module):
    """The learned weights, and how tokens are judged by what was heard."""

    def __init__(self, codec: CodecConfig, frames_per_position: int):
        self.weights = nnx.Param(jnp.array(list(_WEIGHTS.values())), **axes(None))
        self.position_of_step = tuple(_positions(codec, frames_per_position).tolist())
        self.fade = np.log(0.5) * frames_per_position / codec.frames_per_second / _HALF_LIFE_S
        self.codec = codec

    def _weight(self, name: str) -> Array:
        return self.weights[...][list(_WEIGHTS).index(name)]

    def after(self, told: Told, tokens: Int[Array, "B"]) -> Told:
        """What is known when one token more has been read, a row."""
        vocabulary = vocabulary_of(self.codec)
        kind = jnp.asarray(vocabulary.classes)[tokens]
        value = jnp.asarray(vocabulary.values)[tokens]
        at = jnp.asarray(self.position_of_step)
        shift, tie = kind == TokenClass.SHIFT, kind == TokenClass.TIE
        here = at[jnp.clip(told.step, 0, len(at) - 1)] == at[jnp.clip(value, 0, len(at) - 1)]
        begins = tie | (shift & ~(here & (told.step >= 0)))
        program, drum = kind == TokenClass.PROGRAM, kind == TokenClass.DRUM
        pitch, off, on = (kind == TokenClass[n] for n in ("PITCH", "OFF", "ON"))
        reads = jnp.where(told.tied == 0, _ENDING, jnp.maximum(told.velocity, _ENDING))
        order = jnp.where(pitch, reads, jnp.where(drum, _DRUMMING, told.kind))
        pending = jnp.where(program, _PROGRAM_SAID, jnp.where(off | on, _VELOCITY_SAID, 0))
        velocity = jnp.where(off, _ENDING, jnp.where(on, _BEGINNING, told.velocity))
        family = jnp.where(pitch, jnp.maximum(told.program, 0) // 8, told.family)
        named = (jnp.arange(FAMILIES) == family[:, None])[..., None]
        named = named & (jnp.arange(CELLS) == value[:, None])[:, None] & pitch[:, None, None]
        begins_or_goes_on = (told.tied == 0) | (told.velocity == _BEGINNING)
        return Told(
            step=jnp.where(shift, value, told.step),
            tied=jnp.where(tie | shift | off | on, 1, told.tied),
            velocity=velocity,
            program=jnp.where(program, value, told.program),
            pending=pending,
            kind=jnp.where(begins, _START, order),
            family=family,
            pitch=jnp.where(pitch | drum, value, told.pitch),
            sounding=jnp.where(named, begins_or_goes_on[:, None, None], told.sounding),
        )

    def after_all(self, tokens: Int[Array, "B T"]) -> Told:
        """The same at every token of a row, itself included: values (B, T)."""

        def read(told: Told, token: Array) -> tuple[Told, Told]:
            told = self.after(told, token)
            return told, told

        _, each = jax.lax.scan(read, Told.nothing(len(tokens)), tokens.T)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), each)

    def heard(self, logits: Float[Array, "B S R P"]) -> Heard:
        """From the head's logits, one row of 128 for each of `ROLLS`, and by family.

        No gradient flows back: what is heard is learned from frames, how it is used from tokens.
        """
        logits = jax.lax.stop_gradient(logits)
        yes = jax.nn.log_sigmoid(logits[:, :, :3])
        families = logits[:, :, 3:].reshape(*logits.shape[:2], 2, FAMILIES, CELLS)
        shares = jax.nn.log_softmax(_SHARPER * families, axis=3)
        begins = _peaks(yes[:, :, 0])[:, :, None] + shares[:, :, 0]  # (B, S, C, P)
        drum = _peaks(yes[:, :, 2])
        untold = _not(begins).sum((2, 3)) + _not(drum).sum(2)
        sounds = yes[:, :1, 1, None] + shares[:, :1, 1]
        goes_on = sounds + _not(yes[:, :1, 0])[:, :, None]
        begins = jnp.concatenate([_around(begins), goes_on], axis=1)
        drum = _around(drum)
        # Heard here and silent one position on, or struck again. What is not heard at all, though
        # it was told to begin, may have been missed as well as over: it ends some time.
        faded = self.fade * jnp.arange(logits.shape[1])[:, None]
        most = jax.lax.cummax(yes[:, :, 1] - faded, axis=1) + faded
        held = _STEEP * (yes[:, :, 1] - most - np.log(_FALL))
        held = jnp.minimum(held, logits[:, :, 1] - _SILENT)
        stops = jax.nn.log_sigmoid(-_FIRM * held)
        stops = jnp.concatenate([stops[:, 1:], stops[:, -1:]], axis=1)
        stops = stops + jnp.maximum(yes[:, :, 1], _FADING)
        return Heard(
            begins=begins,
            no_begin=jnp.cumsum(_not(begins), axis=-1),
            drum=drum,
            no_drum=jnp.cumsum(_not(drum), axis=-1),
            ends=jnp.maximum(stops, yes[:, :, 0]),
            untold=untold,
        )

    def __call__(self, heard: Heard, told: Told) -> Float[Array, "B T V"]:
        """What to add to the logits of the tokens that follow, `told` (B, T)."""
        at = jnp.asarray(self.position_of_step)[jnp.clip(told.step, 0, None)]
        moment = _Moment(heard, told, at)
        tied = (told.tied == 1)[..., None]
        free = (told.pending == 0)[..., None]
        program = jnp.repeat(moment.family(), CELLS // FAMILIES, axis=-1)
        same = jnp.arange(CELLS) == told.program[..., None]
        program = jnp.where(free & ~same & self._programs(), program, _NEVER)
        named = (told.pending < _VELOCITY_SAID)[..., None]
        velocity = jnp.where(tied & named, moment.velocity(), _NEVER)
        drums = tied & (told.velocity == _BEGINNING)[..., None]
        drums = drums & (told.pending != _PROGRAM_SAID)[..., None]
        drum = jnp.where(drums, moment.drum(), _NEVER)
        sayable = ~tied | (told.velocity != _UNSAID)[..., None]
        pitch = jnp.where(sayable & (told.program >= 0)[..., None], moment.pitch(), _NEVER)
        tie = jnp.where(free & ~tied, moment.nothing(), _NEVER)
        shift, end = self._times(heard, told, at)
        left = self._weight("nothing_left") * moment.nothing()
        shift = jnp.where(free & tied, shift + left, _NEVER)
        end = jnp.where(free & tied, end + left, _NEVER)
        never = jnp.full_like(end, _NEVER)
        parts = [
            jnp.concatenate([never, end, never], axis=-1),  # padding, end, unknown
            shift,
            self._weight("pitch") * pitch,
            self._weight("velocity") * self._bins(velocity),
            self._weight("tie") * tie,
            self._weight("program") * program,
            self._weight("drum") * drum,
        ]
        whole = jnp.concatenate(parts, axis=-1)
        rows = vocabulary_of(self.codec).rows
        unused = (0, rows - whole.shape[-1])
        return jnp.pad(whole, ((0, 0), (0, 0), unused), constant_values=_NEVER)

    def _programs(self) -> np.ndarray:
        """Programs that the language has."""
        step = {"full": 1, "midi_class": CELLS // FAMILIES, "flat": CELLS}[self.codec.granularity]
        return np.arange(CELLS) % step == 0

    def _bins(self, velocity: Float[Array, "B T 2"]) -> Float[Array, "B T bins"]:
        """That notes end, and that they begin in any of the velocities that there are."""
        begins = jnp.repeat(velocity[..., 1:], self.codec.velocity_bins, axis=-1)
        return jnp.concatenate([velocity[..., :1], begins], axis=-1)

    def _times(
        self, heard: Heard, told: Told, at: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T K"], Float[Array, "B T 1"]]:
        """How likely the next event is at each step, and that there is none."""
        sounding = told.sounding.sum(-2).astype(jnp.float32)  # (B, T, P)
        no_end = jnp.einsum("btp,bsp->bts", sounding, _not(heard.ends), precision="highest")
        nothing = jnp.minimum(heard.untold[:, None] + no_end, -_SURE)  # (B, T, S)
        until = jnp.cumsum(nothing, axis=-1)
        position = jnp.arange(nothing.shape[-1])
        # Before anything was told, the first position counts whole.
        told_some = (told.step >= 0) | (told.kind != _START)
        here = told_some[..., None] & (position == at[..., None])
        passed = told_some[..., None] & (position < at[..., None])
        done = jnp.take_along_axis(until, at[..., None], axis=-1)
        done = jnp.where(told_some[..., None], done, 0.0)
        before = jnp.minimum(until - nothing - done, 0.0)
        coming = self._weight("event") * _not(nothing) + self._weight("silence") * before
        coming = jnp.where(passed, 2 * _NEVER, coming + self._weight("again") * here)
        shift = _around(coming, axis=2)[..., jnp.asarray(self.position_of_step)]
        gone = jnp.arange(shift.shape[-1]) <= told.step[..., None]
        end = self._weight("end") * jnp.minimum(until[..., -1:] - done, 0.0)
        return jnp.where(gone, _NEVER, shift), end


def _around(x: Float[Array, "B S *rest"], axis: int = 1) -> Float[Array, "B S *rest"]:
    """Here, or less surely one position away."""
    x = jnp.moveaxis(x, axis, 0)
    edge = jnp.full_like(x[:1], 4 * _NEVER)
    near = jnp.maximum(jnp.concatenate([edge, x[:-1]]), jnp.concatenate([x[1:], edge]))
    return jnp.moveaxis(jnp.maximum(x, near + _BESIDE), 0, axis)


def _peaks(x: Float[Array, "B S P"]) -> Float[Array, "B S P"]:
    """One event where neighbouring positions tell the same one: at the likelier position, with the
    chances of its neighbours; there, next to nothing is left."""
    edge = jnp.full_like(x[:, :1], 4 * _NEVER)
    before, after = jnp.concatenate([edge, x[:, :-1]], 1), jnp.concatenate([x[:, 1:], edge], 1)
    whole = jnp.logaddexp(x, jnp.logaddexp(before, after))
    peak = (x >= before) & (x > after)
    return jnp.where(peak, jnp.minimum(whole, -_SURE), x + _ECHO)


class _Moment:
    """The events of one moment that are still to be told, for each of (B, T) tokens."""

    def __init__(self, heard: Heard, told: Told, at: Int[Array, "B T"]) -> None:
        self.told, rows = told, jnp.arange(len(at))[:, None]
        self.tying = (told.tied == 0)[..., None]
        # A tie section has one kind of event, which stands where notes that end do.
        self.row = jnp.where(told.tied == 0, heard.begins.shape[1] - 1, at)
        self.rows, self.heard = rows, heard
        no_begin = heard.no_begin[rows, self.row, :, -1]  # (B, T, C)
        done = heard.no_begin[rows, self.row, told.family, told.pitch][..., None]
        self.no_end = _not(heard.ends[rows, at])  # (B, T, P)
        no_end = jnp.einsum("btcp,btp->btc", told.sounding.astype(jnp.float32), self.no_end)
        ending = jnp.where(self.tying, no_begin, no_end)
        # Notes whose end was told no longer sound, so only lower ones of theirs are passed over.
        self.ending = self._left(_ENDING, ending, jnp.where(self.tying, done, 0.0))
        self.beginning = jnp.where(self.tying, -_SURE, self._left(_BEGINNING, no_begin, done))
        self.drum_hits, no_drum = heard.drum[rows, at], heard.no_drum[rows, at]
        self.drumming = (told.kind == _DRUMMING)[..., None]
        drummed = jnp.take_along_axis(no_drum, told.pitch[..., None], axis=-1)
        self.no_drum = no_drum - jnp.where(self.drumming, drummed, 0.0)
        self.no_drums = jnp.where(self.tying, -_SURE, jnp.minimum(self.no_drum[..., -1:], -_SURE))
        self.no_ending = self.ending.sum(-1, keepdims=True)
        self.no_beginning = self.beginning.sum(-1, keepdims=True)

    def _left(
        self, kind: int, none: Float[Array, "B T C"], done: Float[Array, "B T 1"]
    ) -> Float[Array, "B T C"]:
        """log P(no event of this kind is left), by family; `done` is of those that were told."""
        family, told = jnp.arange(FAMILIES), self.told
        inside = (told.kind == kind)[..., None]
        left = jnp.where(inside & (family == told.family[..., None]), none - done, none)
        passed = (told.kind > kind)[..., None] | (inside & (family < told.family[..., None]))
        return jnp.where(passed, -_SURE, jnp.minimum(left, -_SURE))

    def _first(self, left: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """log P(the first event of a kind is in this family)."""
        return jnp.cumsum(left, axis=-1) - left + _not(left)

    def _of_program(self, x: Float[Array, "B T C"]) -> Float[Array, "B T 1"]:
        family = jnp.clip(self.told.program, 0, None) // 8
        return jnp.take_along_axis(x, family[..., None], axis=-1)

    def family(self) -> Float[Array, "B T C"]:
        """That the next event is in a family."""
        beginning = self.no_ending + self._first(self.beginning)
        return jnp.logaddexp(self._first(self.ending), beginning)

    def velocity(self) -> Float[Array, "B T 2"]:
        """That the next event ends a note of the program that was said; that it begins one, or is a
        drum; not what was said already."""
        some = (self.told.program >= 0)[..., None]
        ends = self._of_program(self._first(self.ending))
        begins = self.no_ending + self._of_program(self._first(self.beginning))
        drums = self.no_ending + self.no_beginning + _not(self.no_drums)
        drums = jnp.where((self.told.pending == _PROGRAM_SAID)[..., None], 4 * _NEVER, drums)
        begins = jnp.logaddexp(jnp.where(some, begins, 4 * _NEVER), drums)
        both = jnp.concatenate([jnp.where(some, ends, _NEVER), begins], axis=-1)
        said = jnp.arange(_ENDING, _BEGINNING + 1) == self.told.velocity[..., None]
        return jnp.where(said, _NEVER, both)

    def pitch(self) -> Float[Array, "B T P"]:
        """That the next event is at a pitch, of the program and kind that were said."""
        told = self.told
        family = jnp.clip(told.program, 0, None) // 8
        beginning = (told.tied == 1) & (told.velocity == _BEGINNING)
        listed = (beginning | (told.tied == 0))[..., None]  # else one of those that sound may end
        mine = jnp.take_along_axis(told.sounding, family[..., None, None], axis=2)[:, :, 0]
        begins = self.heard.begins[self.rows, self.row, family]
        happens = jnp.where(listed, begins, jnp.where(mine, _not(self.no_end), _NEVER))
        none = jnp.where(listed, _not(begins), jnp.where(mine, self.no_end, 0.0))
        kind = jnp.where(beginning, _BEGINNING, _ENDING)
        inside = ((told.kind == kind) & (told.family == family))[..., None]
        passed = inside & (jnp.arange(CELLS) <= told.pitch[..., None])
        none = jnp.where(passed, 0.0, none)
        between = jnp.cumsum(none, axis=-1) - none
        over = (told.kind > kind) | ((told.kind == kind) & (told.family > family))
        left = jnp.where(beginning[..., None], self.beginning, self.ending)
        first = self._of_program(jnp.cumsum(left, axis=-1) - left)
        first = first + jnp.where(beginning[..., None], self.no_ending, 0.0)
        return jnp.where(passed | over[..., None], _NEVER, first + happens + between)

    def drum(self) -> Float[Array, "B T P"]:
        """That the next event is a hit on a key."""
        between = jnp.minimum(self.no_drum - _not(self.drum_hits), 0.0)
        passed = self.drumming & (jnp.arange(CELLS) <= self.told.pitch[..., None])
        first = self.no_ending + self.no_beginning
        return jnp.where(passed, _NEVER, first + self.drum_hits + between)

    def nothing(self) -> Float[Array, "B T 1"]:
        """That this moment has no more events."""
        return self.no_ending + self.no_beginning + self.no_drums
