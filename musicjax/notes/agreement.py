"""Segments of a recording that agree with each other on who plays and what still sounds.

A model that hears two seconds at a time may call one instrument a violin here and a flute there,
and name a held note's program differently when it goes on. Each segment is heard again knowing
more than itself: how often each program was heard in the whole recording, as a bias on the logits
of program tokens, and which notes sound when it begins, as the tie section that it must begin with.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, Integer

from musicjax.errors import ConfigError
from musicjax.notes.codec import Codec
from musicjax.notes.decoding import TokenDecoder
from musicjax.notes.vocabulary import EOS, MIDI_VALUES, TokenClass


@dataclass(frozen=True)
class AgreementConfig:
    """How much the segments of a recording listen to each other.

    prior: weight of what the recording says of a program against what the segment says; 1 counts
        both fully, 0 leaves programs alone.
    doubt: notes that every program is granted before any was heard; more of them make the
        recording's word softer.
    most: the bias goes down to minus this, so that an instrument which enters late can be heard.
    ties: whether a segment is told which notes go on into it. It keeps its own say on the pitches,
        and takes the programs from the notes as they began.
    """

    prior: float = 1.0
    doubt: float = 2.0
    most: float = 5.0
    ties: bool = True

    def __post_init__(self) -> None:
        if self.prior < 0 or self.doubt <= 0 or self.most < 0:
            raise ConfigError(
                f"prior ({self.prior}) and most ({self.most}) must be 0 or above, and doubt "
                f"({self.doubt}) above 0."
            )


class Votes:
    """How many notes of each program were heard in a recording so far; drums have no program."""

    def __init__(self, codec: Codec, config: AgreementConfig) -> None:
        self.codec, self.config = codec, config
        self.notes = np.zeros(MIDI_VALUES, np.int64)

    def count(self, tokens: Integer[np.ndarray, " L"]) -> None:
        """Add the onsets of one segment."""
        words = self.codec.vocabulary
        tokens = _until_end(tokens)
        kinds, values = words.classes[tokens], words.values[tokens]
        program, sounding = 0, False
        for kind, value in zip(kinds.tolist(), values.tolist(), strict=True):
            if kind == TokenClass.PROGRAM:
                program = value
            elif kind in (TokenClass.ON, TokenClass.OFF):
                sounding = kind == TokenClass.ON
            elif kind == TokenClass.PITCH and sounding:
                self.notes[program] += 1

    def bias(self) -> Float32[np.ndarray, " V"]:
        """What to add to a segment's logits: 0 for the program heard most, less for others."""
        words = self.codec.vocabulary
        bias = np.zeros(words.rows, np.float32)
        if self.codec.config.granularity != "flat":
            share = (self.notes + self.config.doubt) / (self.notes.max() + self.config.doubt)
            lean = np.maximum(self.config.prior * np.log(share), -self.config.most)
            bias[words.program(np.arange(MIDI_VALUES))] = lean
        return bias


def tie_prompt(
    codec: Codec,
    tokens: Integer[np.ndarray, " L"],
    sounding: Integer[np.ndarray, "notes 2"],
) -> Int32[np.ndarray, " P"] | None:
    """The tie section that a segment should have begun with, `tokens` being what it wrote alone.

    Of the notes that sound before it (programs and pitches), those whose pitch it tied itself,
    under whatever program. None where the language has no ties.
    """
    if not codec.config.ties:
        return None
    own = codec.ties(tokens)
    exact = (own[:, None] == sounding).all(-1).any(0) if len(own) else np.zeros(len(sounding), bool)
    left = set(own[:, 1].tolist()) - set(sounding[exact, 1].tolist())
    kept = exact.copy()
    for place in np.flatnonzero(~exact & np.isin(sounding[:, 1], own[:, 1])).tolist():
        if sounding[place, 1] in left:  # one note a pitch: it was tied once
            left.discard(int(sounding[place, 1]))
            kept[place] = True
    return codec.tie_section(sounding[kept])


def is_settled(
    codec: Codec,
    tokens: Integer[np.ndarray, " L"],
    prompt: Integer[np.ndarray, " P"] | None,
    bias: Float[np.ndarray, " V"],
) -> bool:
    """Whether a segment already says what it would be told: its ties, and usual programs only."""
    written = _until_end(tokens)
    programs = np.unique(written[codec.vocabulary.classes[written] == TokenClass.PROGRAM])
    usual = not len(programs) or float(bias[programs].min()) > -_UNUSUAL
    begins = prompt is None or np.array_equal(written[: len(prompt)], prompt)
    return usual and begins


_UNUSUAL = 0.7  # a program heard half as often as the one heard most is still usual


def states(
    codec: Codec,
    rows: Iterable[Integer[np.ndarray, " L"]],
    sounding: Integer[np.ndarray, "notes 2"] | None = None,
) -> list[np.ndarray]:
    """What sounds before each segment of a recording, (notes, 2) programs and pitches, and last
    what sounds when all are over. `sounding`: before the first one."""
    decoder, found = TokenDecoder(codec.config, sounding), []
    for place, tokens in enumerate(rows):
        found.append(decoder.sounding())
        frame = place * codec.config.segment_frames
        decoder.segment(tokens, frame, frame + codec.config.segment_frames)
    return [*found, decoder.sounding()]


def _until_end(tokens: Integer[np.ndarray, " L"]) -> Int64[np.ndarray, " M"]:
    tokens = np.asarray(tokens).astype(np.int64)
    ends = np.flatnonzero(tokens == EOS)
    return tokens[: ends[0]] if len(ends) else tokens
