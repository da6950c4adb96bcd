"""Which token may follow which: the shape of every stream that the encoder writes.

A finite automaton over token classes, as tables that a decoding loop on a device reads, and one
rule that is not finite: shifts count from the start of the segment, so each must be greater than
the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Integer

from musicjax.errors import ConfigError
from musicjax.notes.vocabulary import CodecConfig, TokenClass, vocabulary_of


@dataclass(frozen=True, eq=False)
class Grammar:
    """Tables of the automaton; state 0 is where a segment begins.

    allowed[s, c]: whether a token of class c may come in state s. next_state[s, c]: the state after
    it (s itself where it may not come). token_class[v]: the class of each id of the logits.
    shift_step[v]: the step of a shift, and -1 for all other ids.

    On a device a row of the batch carries its state and the last shift's step, both 0 at first:

        legal = allowed[state][:, token_class] & ((shift_step < 0) | (shift_step > last[:, None]))
        state = next_state[state, token_class[token]]
        last = jnp.maximum(last, shift_step[token])

    From every state some token is legal, and EOS can be reached: a shift is followed by an event,
    and after an event the segment may end.
    """

    next_state: Int32[np.ndarray, "states classes"]
    allowed: Bool[np.ndarray, "states classes"]
    token_class: Int32[np.ndarray, " V"]
    shift_step: Int32[np.ndarray, " V"]

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return len(self.allowed)

    def first_error(self, tokens: Integer[np.ndarray, " L"]) -> int | None:
        """The place of the first token that may not stand there; None when there is none."""
        state, last = 0, 0
        for place, token in enumerate(np.asarray(tokens).tolist()):
            if not 0 <= token < len(self.token_class):
                return place
            kind, step = self.token_class[token], int(self.shift_step[token])
            if not self.allowed[state, kind] or 0 <= step <= last:
                return place
            state, last = self.next_state[state, kind], max(last, step)
        return None


class _Place(NamedTuple):
    """What decides which class may come next.

    begun: the class that still waits for what it announces (a shift, program or velocity), EOS when
    all is over, or None. tying: in the tie section. program: whether one has been said, or is never
    said. velocity: the class of the last one said.
    """

    begun: TokenClass | None
    tying: bool
    program: bool
    velocity: TokenClass | None


_OVER = _Place(TokenClass.EOS, False, False, None)


def make_grammar(config: CodecConfig, segment_frames: int | None = None) -> Grammar:
    """The grammar of a segment of so many frames (the config's by default).

    Shifts beyond the segment's end are of the class that never comes. Errors: ConfigError when the
    segment is longer than the longest shift, because times would then take several tokens.
    """
    frames = config.segment_frames if segment_frames is None else segment_frames
    steps = int(np.ceil(frames / config.frames_per_second * config.steps_per_second))
    if steps > config.max_shift_steps:
        raise ConfigError(
            f"A segment of {frames} frames has {steps} steps; the grammar knows segments of at "
            f"most {config.max_shift_steps}. Shorten the segments or leave the grammar out."
        )
    vocabulary = vocabulary_of(config)
    is_shift = vocabulary.classes == TokenClass.SHIFT
    beyond = is_shift & (vocabulary.values > steps)
    token_class = np.where(beyond, TokenClass.NEVER, vocabulary.classes).astype(np.int32)
    shift_step = np.where(is_shift, vocabulary.values, -1).astype(np.int32)

    start = _Place(None, config.ties, config.granularity == "flat" or config.onsets_only, None)
    places, number = [start], {start: 0}
    arrows: list[tuple[int, TokenClass, int]] = []
    for place in places:  # grows while it is walked
        for kind, following in _following(place, config):
            if following not in number:
                number[following] = len(places)
                places.append(following)
            arrows.append((number[place], kind, number[following]))
    shape = len(places), len(TokenClass)
    next_state = np.repeat(np.arange(shape[0], dtype=np.int32)[:, None], shape[1], axis=1)
    allowed = np.zeros(shape, dtype=bool)
    for state, kind, following_state in arrows:
        next_state[state, kind], allowed[state, kind] = following_state, True
    for table in (next_state, allowed, token_class, shift_step):
        table.setflags(write=False)
    return Grammar(next_state, allowed, token_class, shift_step)


def _following(place: _Place, config: CodecConfig) -> Iterator[tuple[TokenClass, _Place]]:
    """Each class that may come at a place, and the place it leads to."""
    kinds = TokenClass
    begun, tying, program, velocity = place
    settled = place._replace(begun=None)
    if place == _OVER:
        yield kinds.PAD, _OVER
        return
    if begun is None and tying:
        yield kinds.TIE, place._replace(tying=False)
    elif begun is None:
        yield kinds.EOS, _OVER
        yield kinds.SHIFT, place._replace(begun=kinds.SHIFT)
    if config.onsets_only:
        yield kinds.PITCH, settled
        return
    if begun in (None, kinds.SHIFT) and config.granularity != "flat":
        yield kinds.PROGRAM, place._replace(begun=kinds.PROGRAM, program=True)
    if tying:
        if program:
            yield kinds.PITCH, settled
        return
    if begun in (None, kinds.SHIFT, kinds.PROGRAM):
        # A velocity is said only when it changes; what ends is a pitch, so it needs its program.
        if program and velocity != kinds.OFF:
            yield kinds.OFF, place._replace(begun=kinds.OFF, velocity=kinds.OFF)
        if velocity != kinds.ON or config.velocity_bins > 1:
            yield kinds.ON, place._replace(begun=kinds.ON, velocity=kinds.ON)
    if program and velocity is not None:
        yield kinds.PITCH, settled
    if velocity == kinds.ON and begun != kinds.PROGRAM:
        yield kinds.DRUM, settled
