"""The words of MT3's language for notes (Gardner et al., ICLR 2022, section 3.2).

A stretch of music is a sequence of events: time shifts, programs, velocities, pitches, drum hits,
and the end of the section of tied notes. An event is a class with a value; classes follow each
other in one range of numbers, and a token is that number plus three, after padding, end, unknown.

The two published families differ in velocities, programs and ties; `codec_config` has them by name.
Where the original has a habit that one would not choose, `Quirks` names it and switches it off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache, cached_property
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int32, Integer

from musicjax.errors import ConfigError
from musicjax.notes.programs import Granularity

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = 3
ROWS_MULTIPLE = 128  # embeddings are rounded up to it, which suits matrix units
MIDI_VALUES = 128  # pitches, programs and velocities go from 0 to 127
LOUDEST = 127

Ids = TypeVar("Ids", int, np.ndarray)  # one number or many


class TokenClass(IntEnum):
    """What a token is. Velocity 0 says that pitches which follow end, so it has its own class."""

    PAD = 0
    EOS = 1
    NEVER = 2
    """Unknown, the extra tokens of T5, and rows of the embedding that no event uses."""
    SHIFT = 3
    PITCH = 4
    OFF = 5
    ON = 6
    TIE = 7
    PROGRAM = 8
    DRUM = 9


@dataclass(frozen=True)
class Quirks:
    """Habits of the original, each as it is there; `NO_QUIRKS` switches all of them off.

    Encoding:
    stale_ties: when nothing happens after a segment begins, its tie section tells what sounded
        before the last event of the recording, so notes that have ended are called tied. Off: it
        tells what sounds.
    late_events: the last segment of a recording also holds what happens after the audio ends. Off:
        that is left out (and counted).
    overlaps: a note that begins while its pitch and program still sound leaves the earlier one to
        end later, which the tokens cannot say: decoding ends the wrong note and counts an invalid
        event. Off: the earlier note ends where the later begins, as the original does for its Slakh
        training data alone.
    late_program_mapping: programs are made coarser after the notes have become tokens, so two
        programs that fall together are still kept apart in ties and overlaps. Off: before.

    Decoding:
    start_rounding: a segment's start is rounded down to a step by a floating-point remainder, in
        float64 (the published notebook) or float32 (the published evaluation), which puts some
        segments one step early. "exact" counts steps in whole numbers.
    carry_state: program and velocity that were last said go on in the next segment. Off: a segment
        begins with program 0 and velocity 100, as the first one does.
    strict_ties: in a segment without the token that ends its tie section no pitch is understood.
        Off: the first shift, velocity or drum ends the section too.
    exact_ties: a tie to a pitch that sounds under another program is not understood, and the note
        ends. Off: the note goes on under the program it began with, and its end is understood
        under either.
    """

    stale_ties: bool = True
    late_events: bool = True
    overlaps: bool = True
    late_program_mapping: bool = True
    start_rounding: Literal["float64", "float32", "exact"] = "float64"
    carry_state: bool = True
    strict_ties: bool = True
    exact_ties: bool = True


NO_QUIRKS = Quirks(
    stale_ties=False,
    late_events=False,
    overlaps=False,
    late_program_mapping=False,
    start_rounding="exact",
    carry_state=False,
    strict_ties=False,
    exact_ties=False,
)


@dataclass(frozen=True)
class CodecConfig:
    """How notes are written as tokens; the defaults are those of `codec_config("mt3")`.

    velocity_bins: 1 says only that a note begins; 127 keeps every MIDI velocity.
    granularity: programs as they are, the first of their General MIDI class, or none at all.
    ties: a segment begins by telling which notes go on from the one before.
    onsets_only: pitches where notes begin, without ends, velocities and programs; drum keys count
        as pitches, as in the original.
    segment_frames, max_tokens: frames that a model hears at once and tokens that it may write for
        them, the end included. extra_tokens: T5's sentinels, which no event uses.
    """

    velocity_bins: int = 1
    granularity: Granularity = "full"
    ties: bool = True
    onsets_only: bool = False
    segment_frames: int = 256
    max_tokens: int = 1024
    frames_per_second: float = 125.0
    steps_per_second: int = 100
    max_shift_steps: int = 1000
    extra_tokens: int = 100
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self) -> None:
        if not 1 <= self.velocity_bins <= LOUDEST:
            raise ConfigError(f"velocity_bins must be from 1 to 127; got {self.velocity_bins}.")
        for name in ("segment_frames", "max_tokens", "steps_per_second", "max_shift_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not self.frames_per_second > 0:
            raise ConfigError(f"frames_per_second must be above 0; got {self.frames_per_second}.")
        if self.onsets_only and self.ties:
            raise ConfigError("onsets_only has no ends to tie: set ties to False with it.")


PROFILES: Mapping[str, CodecConfig] = {
    # magenta/mt3, gin/mt3.gin: multi-instrument transcription (ICLR 2022).
    "mt3": CodecConfig(),
    # gin/ismir2021.gin: sequence-to-sequence piano transcription (Hawthorne et al., ISMIR 2021).
    "ismir2021": CodecConfig(velocity_bins=127, granularity="flat", ties=False, segment_frames=512),
    # gin/ismir2022: the larger network of the same task speaks MT3's language.
    "ismir2022": CodecConfig(),
}


def codec_config(profile: str = "mt3", *, faithful: bool = True) -> CodecConfig:
    """The language of a published family: "mt3", "ismir2021" (piano) or "ismir2022".

    Faithful keeps every habit of the original (`Quirks`), which its weights expect of their
    targets; otherwise all of them are off, which is better for weights trained anew.
    """
    if profile not in PROFILES:
        raise ConfigError(f"no codec profile {profile!r}; choose one of {', '.join(PROFILES)}.")
    config = PROFILES[profile]
    return config if faithful else replace(config, quirks=NO_QUIRKS)


@dataclass(frozen=True)
class Vocabulary:
    """Which number stands for which event.

    Ids are those of the model: 0 padding (also what the decoder starts from), 1 end, 2 unknown, and
    then shift 0..max, pitch 0..127, velocity bin 0..B, tie, program 0..127, drum 0..127. The
    methods take numbers or arrays and give ids of the same shape; values are not checked.
    """

    config: CodecConfig

    @cached_property
    def _first(self) -> dict[str, int]:
        counts = {
            "shift": self.config.max_shift_steps + 1,
            "pitch": MIDI_VALUES,
            "velocity": self.config.velocity_bins + 1,
            "tie": 1,
            "program": MIDI_VALUES,
            "drum": MIDI_VALUES,
        }
        ends = np.cumsum(list(counts.values())) + SPECIAL_TOKENS
        first = {n: int(e) - c for (n, c), e in zip(counts.items(), ends, strict=True)}
        return {**first, "end": int(ends[-1])}

    @property
    def num_events(self) -> int:
        """How many different events there are: 1388 in MT3, 1514 in the piano model."""
        return self._first["end"] - SPECIAL_TOKENS

    @property
    def size(self) -> int:
        """Ids with a meaning or reserved by T5: 1491 in MT3, 1617 in the piano model."""
        return self._first["end"] + self.config.extra_tokens

    @property
    def rows(self) -> int:
        """Rows of the embedding, and width of the logits: `size` up to the next 128th."""
        return -(-self.size // ROWS_MULTIPLE) * ROWS_MULTIPLE

    def shift(self, steps: Ids) -> Ids:
        """So many steps after the start of the segment."""
        return steps + self._first["shift"]

    def pitch(self, pitch: Ids) -> Ids:
        """A MIDI pitch that begins, ends or goes on."""
        return pitch + self._first["pitch"]

    def velocity(self, velocity_bin: Ids) -> Ids:
        """A velocity bin; 0 says that the pitches which follow end."""
        return velocity_bin + self._first["velocity"]

    @property
    def tie(self) -> int:
        """The end of the tie section."""
        return self._first["tie"]

    def program(self, program: Ids) -> Ids:
        """A General MIDI program that the pitches which follow belong to."""
        return program + self._first["program"]

    def drum(self, key: Ids) -> Ids:
        """A hit on a General MIDI drum key."""
        return key + self._first["drum"]

    def velocity_bin(self, velocity: Integer[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
        """The bin of MIDI velocities: 0 for 0, else B * v / 127 rounded up."""
        return -(-self.config.velocity_bins * velocity.astype(np.int64) // LOUDEST)

    def bin_velocity(self, velocity_bin: int) -> int:
        """The MIDI velocity that a bin is heard as: 127 * bin / B rounded down."""
        return LOUDEST * velocity_bin // self.config.velocity_bins

    @cached_property
    def classes(self) -> Int32[np.ndarray, " V"]:
        """The `TokenClass` of each row of the embedding."""
        first = self._first
        classes = np.full(self.rows, TokenClass.NEVER, dtype=np.int32)
        classes[PAD], classes[EOS] = TokenClass.PAD, TokenClass.EOS
        classes[first["shift"] : first["pitch"]] = TokenClass.SHIFT
        classes[first["pitch"] : first["velocity"]] = TokenClass.PITCH
        classes[first["velocity"] : first["tie"]] = TokenClass.ON
        classes[first["velocity"]] = TokenClass.OFF
        classes[first["tie"]] = TokenClass.TIE
        classes[first["program"] : first["drum"]] = TokenClass.PROGRAM
        classes[first["drum"] : first["end"]] = TokenClass.DRUM
        classes.setflags(write=False)
        return classes

    @cached_property
    def values(self) -> Int32[np.ndarray, " V"]:
        """The value of each row's event: steps, pitch, bin, program, key; 0 without one."""
        values = np.zeros(self.rows, dtype=np.int32)
        starts = [place for name, place in self._first.items() if name != "end"]
        for start, end in zip(starts, [*starts[1:], self._first["end"]], strict=True):
            values[start:end] = np.arange(end - start)
        values.setflags(write=False)
        return values

    def names(self, tokens: Integer[np.ndarray, " L"]) -> list[str]:
        """Tokens in words, for people: "shift 50", "program 0", "on 1", "pitch 60", "eos"."""
        bare = (TokenClass.PAD, TokenClass.EOS, TokenClass.NEVER, TokenClass.TIE)
        words = []
        for token in np.asarray(tokens).tolist():
            known = 0 <= token < self.rows
            kind = TokenClass(int(self.classes[token])) if known else TokenClass.NEVER
            word = kind.name.lower()
            words.append(word if kind in bare else f"{word} {self.values[token]}")
        return words


@cache
def vocabulary_of(config: CodecConfig) -> Vocabulary:
    """The vocabulary of a config, made once with its tables."""
    return Vocabulary(config)
