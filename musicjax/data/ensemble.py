"""Any piece for any band: the parts of a score given to other instruments, and drums beside them.

Corpora of MIDI files know few line-ups, and each always the same; a transcriber of several
instruments needs to have heard each of them high and low, loud and soft, alone and in company. So
the parts of a piece (its programs, or the melody, bass and middle of a piece with one program) are
given to random General MIDI programs, put into their ranges by octaves, and balanced anew.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from musicjax.data.performance import playable
from musicjax.errors import ConfigError, DataError
from musicjax.notes import Notes

_TOGETHER_S = 0.03  # onsets within this are one chord, of which one note is the top and one the low

# Ranges of General MIDI programs as they are written for, MIDI pitches; families of eight first.
_FAMILY_RANGES: dict[int, tuple[int, int]] = {
    0: (21, 108),
    8: (48, 96),
    16: (36, 96),
    24: (40, 84),
    32: (28, 60),
    40: (36, 96),
    48: (36, 84),
    56: (40, 82),
    64: (49, 86),
    72: (60, 96),
    80: (48, 92),
    88: (36, 84),
    104: (43, 84),
}
_OWN_RANGES: dict[int, tuple[int, int]] = {
    9: (79, 108),
    11: (53, 89),
    12: (45, 96),
    13: (65, 108),
    40: (55, 100),
    41: (48, 88),
    42: (36, 76),
    43: (28, 60),
    46: (24, 103),
    47: (38, 60),
    56: (54, 86),
    57: (40, 74),
    58: (28, 58),
    59: (54, 84),
    60: (41, 77),
    64: (56, 88),
    65: (49, 81),
    66: (44, 76),
    67: (36, 69),
    68: (58, 91),
    69: (52, 81),
    70: (34, 74),
    71: (50, 92),
    72: (74, 108),
}
_NOISES = frozenset((55, 96, 97, 98, 99, 100, 101, 102, 103, *range(112, 128)))
# How often a family is drawn: the ones that are met most often in recordings come more often.
_FAMILY_ODDS = {0: 3.0, 24: 2.0, 32: 2.0, 40: 2.5, 48: 1.5, 56: 1.5, 64: 1.5, 72: 1.0, 88: 0.5}
_RARE_ODDS = 0.7


@dataclass(frozen=True)
class EnsembleConfig:
    """How freely a piece is given to other instruments."""

    parts: tuple[int, int] = (1, 8)
    """Fewest and most pitched parts."""
    own_chance: float = 0.25
    """How often a piece of several programs keeps them."""
    doubling_chance: float = 0.15
    """How often one part is played by a second instrument as well, perhaps an octave away."""
    drums_chance: float = 0.5
    """How often a piece without drums gets some, where there are drum scores."""
    balance_db: float = 5.0
    """Standard deviation of the loudness of a part against the others, as written velocities."""

    def __post_init__(self) -> None:
        if not 1 <= self.parts[0] <= self.parts[1] <= 15:
            raise ConfigError(
                f"parts is {self.parts}; give the fewest and the most, within 1 and 15: a "
                "synthesizer plays no more at once."
            )


def instrument_range(program: int) -> tuple[int, int] | None:
    """Lowest and highest MIDI pitch written for a General MIDI program; None for noises."""
    if program in _NOISES:
        return None
    return _OWN_RANGES.get(program) or _FAMILY_RANGES[program // 8 * 8]


def orchestrate(
    notes: Notes,
    rng: np.random.Generator,
    config: EnsembleConfig,
    *,
    programs: Collection[int] = range(128),
    drums: Notes | None = None,
) -> Notes:
    """The piece for another line-up. Lengths with the pedal become lengths of notes.

    Args:
      notes: a piece with any programs, drums allowed.
      rng: source of every draw.
      config: how freely.
      programs: General MIDI programs that can be played.
      drums: what is drummed where the piece has none, repeated as long as the piece lasts.

    Raises DataError when `programs` has no pitched instrument.
    """
    usable = sorted(p for p in programs if instrument_range(p) is not None)
    if not usable:
        raise DataError(f"programs {sorted(programs)} has no pitched instrument of General MIDI.")
    notes = replace(notes.sustained(), pedal=None, bends=None)
    pitched, beat = notes[~notes.is_drum], notes[notes.is_drum]
    own = np.unique(pitched.program).tolist()
    keep = len(own) > 1 and set(own) <= set(usable) and rng.random() < config.own_chance
    most = min(config.parts[1], len(usable))
    count = int(rng.integers(min(config.parts[0], most), most + 1))
    parts = split_parts(pitched, count, rng)
    if not keep:
        chosen = _draw_programs(parts, usable, rng)
        parts = [_fitted(p, n, rng) for p, n in zip(parts, chosen, strict=True)]
        if rng.random() < config.doubling_chance and len(parts) < most:
            free = [p for p in usable if p not in chosen]
            double = parts[rng.integers(len(parts))]
            parts.append(_fitted(double, int(rng.choice(free)), rng)) if free else None
    parts = [_balanced(part, rng, config.balance_db) for part in parts]
    if not len(beat) and drums is not None and rng.random() < config.drums_chance:
        beat = _repeated(drums[drums.is_drum], pitched.duration_s, rng)
    whole = Notes.concat([*parts, _balanced(beat, rng, config.balance_db)])
    return playable(
        whole.onset_s,
        whole.offset_s,
        whole.pitch.astype(np.int64),
        whole.velocity.astype(float),
        program=whole.program,
        is_drum=whole.is_drum,
    )


def split_parts(notes: Notes, count: int, rng: np.random.Generator) -> list[Notes]:
    """Up to `count` parts of pitched notes, none empty.

    By program where there are several, the smallest joined to the nearest in height when there are
    too many. The largest part is split, while there are too few, into the tops of its chords, the
    lowest notes, and the rest by height.
    """
    programs = np.unique(notes.program)
    parts = [notes[notes.program == program] for program in programs]
    while len(parts) > count:
        parts.sort(key=len)
        small = parts.pop(0)
        near = min(range(len(parts)), key=lambda i: abs(_height(parts[i]) - _height(small)))
        parts[near] = Notes.concat([parts[near], small]).sorted()
    while len(parts) < count:
        parts.sort(key=len)
        halves = _split(parts[-1], rng)
        if len(halves) < 2:
            break
        parts[-1:] = halves
    return parts


def _height(notes: Notes) -> float:
    return float(np.median(notes.pitch))


def _split(notes: Notes, rng: np.random.Generator) -> list[Notes]:
    """Two parts of one: the tops of chords, their lowest notes, or what lies above a height."""
    notes = notes.sorted()
    chord = np.cumsum(np.diff(notes.onset_s, prepend=notes.onset_s[:1]) > _TOGETHER_S)
    order = np.lexsort((notes.pitch, chord))
    last = np.diff(chord[order], append=-1) != 0
    first = np.diff(chord[order], prepend=-1) != 0
    above = notes.pitch > np.quantile(notes.pitch, rng.uniform(0.3, 0.7))
    manners = [_at(order, last & ~first), _at(order, first & ~last), above]
    for manner in rng.permutation(3).tolist():
        mine = manners[manner]
        if mine.any() and not mine.all():
            return [notes[mine], notes[~mine]]
    return [notes]


def _at(order: np.ndarray, flags: np.ndarray) -> np.ndarray:
    mine = np.zeros(len(order), bool)
    mine[order] = flags
    return mine


def _draw_programs(parts: list[Notes], usable: list[int], rng: np.random.Generator) -> list[int]:
    """A program for each part, all different, odds by family and by how well its range fits."""
    left, chosen = list(usable), []
    for part in parts:
        odds = np.array([_odds(program, usable, _height(part)) for program in left])
        pick = int(rng.choice(len(left), p=odds / odds.sum()))
        chosen.append(left.pop(pick))
    return chosen


def _odds(program: int, usable: list[int], height: float) -> float:
    family = program // 8
    siblings = sum(p // 8 == family for p in usable)
    low, high = instrument_range(program) or (0, 127)
    away = max(low + 4 - height, height - (high - 4), 0.0)  # semitones out of a comfortable range
    return _FAMILY_ODDS.get(8 * family, _RARE_ODDS) / siblings * 2.0 ** (-away / 8)


def _fitted(notes: Notes, program: int, rng: np.random.Generator) -> Notes:
    """A part for an instrument: moved by octaves into its range, strays folded in."""
    low, high = instrument_range(program) or (0, 127)
    pitch: Int[np.ndarray, " notes"] = notes.pitch.astype(np.int64)
    octaves = range(-5, 6)
    inside = [int(((pitch + 12 * o >= low) & (pitch + 12 * o <= high)).sum()) for o in octaves]
    best = [o for o, n in zip(octaves, inside, strict=True) if n >= 0.95 * max(inside)]
    near = sorted(best, key=abs)[:2]
    pitch = pitch + 12 * int(rng.choice(near))
    pitch = np.where(pitch < low, low + (pitch - low) % 12, pitch)
    pitch = np.where(pitch > high, high - (high - pitch) % 12, pitch)
    return replace(notes, pitch=pitch, program=np.full(len(notes), program))


def _balanced(notes: Notes, rng: np.random.Generator, balance_db: float) -> Notes:
    # Fonts play about 40 dB between velocities 1 and 127 as the square of the velocity.
    factor = 10 ** (rng.normal(0, balance_db) / 40)
    velocity = np.clip(np.rint(notes.velocity * factor), 1, 127).astype(np.int64)
    return replace(notes, velocity=velocity)


def _repeated(drums: Notes, duration_s: float, rng: np.random.Generator) -> Notes:
    """Drums from a random place on, again and again until the piece is over."""
    if not len(drums):
        return drums
    length_s = max(drums.duration_s, 1.0)
    start_s = -float(rng.uniform(0, length_s))
    rounds = int(np.ceil((duration_s - start_s) / length_s))
    played = Notes.concat([drums.shift(start_s + i * length_s) for i in range(rounds)])
    return played[(played.onset_s >= 0) & (played.onset_s < duration_s)]
