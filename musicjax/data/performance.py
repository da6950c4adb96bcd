"""How a score is played: pedal, rolled chords, uneven hands, another key, tempo and touch.

Used on composed scores (`compose`) and to play one MIDI file in many ways (`reperform`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from musicjax.notes import SUSTAIN, Notes, Pedal

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # A0 and C8, the ends of the keyboard
_SAME_STRIKE_S = 0.03  # two strikes of one key closer than this cannot be played
_SHORTEST_S = 0.02
_LONGEST_PEDAL_S = 8.0  # a pedal pressed less often than this is a leftover in the file
_KEY_RETURN_S = 0.01  # a key must come up this long before it is struck again


@dataclass(frozen=True)
class ReperformConfig:
    """Ranges of the ways in which one score may be played. Zero ranges play it as written."""

    transpose_semitones: int = 4
    """Largest transposition up or down; notes that leave the keyboard are dropped."""
    tempo: tuple[float, float] = (0.8, 1.25)
    """Range of the factor on tempo, log-uniform."""
    velocity_gain: tuple[float, float] = (0.6, 1.25)
    """Range of the factor on velocities."""
    velocity_power: tuple[float, float] = (0.7, 1.4)
    """Range of the exponent of the velocity curve: above 1 widens the dynamics."""
    velocity_jitter: float = 4.0
    """Standard deviation added to each velocity."""
    articulation: tuple[float, float] = (0.7, 1.1)
    """Range of the factor on note lengths."""
    onset_jitter_s: float = 0.008
    """Standard deviation of onsets in seconds."""
    pedal_chance: float = 0.6
    """Chance of a random pedal where the score has none."""
    pedal_drop_chance: float = 0.1
    """Chance of leaving out a pedal that the score has."""
    add_soft_chance: float = 0.15
    """Chance of a very soft performance."""


def reperform(notes: Notes, rng: np.random.Generator, config: ReperformConfig) -> Notes:
    """Play notes in another way, drawn from `rng`. Drums keep their pitch."""
    notes = notes.sorted()
    count = len(notes)
    limit = config.transpose_semitones
    shift = int(rng.integers(-limit, limit + 1)) if limit else 0
    pitch = notes.pitch.astype(np.int64) + np.where(notes.is_drum, 0, shift)
    keep = (pitch >= LOWEST_PITCH) & (pitch <= HIGHEST_PITCH) | notes.is_drum

    notes = notes.stretch(1 / _log_uniform(rng, *config.tempo))
    onset = np.maximum(notes.onset_s + rng.normal(0, config.onset_jitter_s, count), 0.0)
    length = (notes.offset_s - notes.onset_s) * rng.uniform(*config.articulation)

    level = np.clip(notes.velocity / 127.0, 0.01, 1.0)
    level = level ** rng.uniform(*config.velocity_power) * rng.uniform(*config.velocity_gain)
    if rng.random() < config.add_soft_chance:
        level *= rng.uniform(0.3, 0.6)
    velocity = 127 * level + rng.normal(0, config.velocity_jitter, count)

    pedal = notes.pedal if _is_pedalled(notes) else None
    if pedal is None and rng.random() < config.pedal_chance:
        pedal = random_pedal(rng, np.unique(np.round(onset, 1)))
    elif pedal is not None and rng.random() < config.pedal_drop_chance:
        pedal = None
    return playable(
        onset[keep],
        onset[keep] + length[keep],
        pitch[keep],
        velocity[keep],
        program=notes.program[keep],
        is_drum=notes.is_drum[keep],
        pedal=pedal,
    )


def _is_pedalled(notes: Notes) -> bool:
    """Whether the pedal is worked as a pianist does: files with a few stray moves are not."""
    if notes.pedal is None:
        return False
    presses = np.sum((notes.pedal.number == SUSTAIN) & (notes.pedal.value >= 64))
    return bool(presses * _LONGEST_PEDAL_S >= notes.duration_s)


def playable(
    onset_s: Float[np.ndarray, " notes"],
    offset_s: Float[np.ndarray, " notes"],
    pitch: Int[np.ndarray, " notes"],
    velocity: Float[np.ndarray, " notes"],
    *,
    program: np.ndarray | None = None,
    is_drum: np.ndarray | None = None,
    pedal: Pedal | None = None,
) -> Notes:
    """Notes that ten fingers on 88 keys could strike, sorted by onset.

    Of two strikes of one key within 30 ms the later goes; a key comes up before it is struck again;
    velocities are clipped to 1..127.
    """
    count = len(onset_s)
    program = np.zeros(count, np.uint8) if program is None else program
    is_drum = np.zeros(count, bool) if is_drum is None else is_drum
    order = np.lexsort((onset_s, pitch, program, is_drum))
    onset, offset, key = onset_s[order], offset_s[order], np.asarray(pitch)[order]
    same = (np.diff(key) == 0) & (np.diff(program[order].astype(int)) == 0)
    struck = np.ones(count, bool)
    struck[1:] = ~(same & (np.diff(onset) < _SAME_STRIKE_S))
    order, onset, offset, key = order[struck], onset[struck], offset[struck], key[struck]

    following = np.full(len(onset), np.inf)
    if len(onset) > 1:
        same = (np.diff(key) == 0) & (np.diff(program[order].astype(int)) == 0)
        following[:-1] = np.where(same, onset[1:] - _KEY_RETURN_S, np.inf)
    offset = np.minimum(np.maximum(offset, onset + _SHORTEST_S), following)
    return Notes.from_arrays(
        onset_s=onset,
        offset_s=offset,
        pitch=key,
        velocity=np.clip(np.rint(velocity[order]), 1, 127).astype(np.uint8),
        program=program[order],
        is_drum=is_drum[order],
        pedal=pedal,
    ).sorted()


def random_pedal(rng: np.random.Generator, changes_s: Sequence[float] | np.ndarray) -> Pedal | None:
    """A sustain pedal that follows changes of harmony at `changes_s` (seconds, ascending).

    The manner is drawn once: at each change, held over several, half-pressed, at random, or a
    continuous pedal whose value wanders.
    """
    changes = np.asarray(changes_s, float)
    if len(changes) < 2:
        return None
    least_s = {"changes": 0.25, "long": 3.0, "half": 0.4, "sparse": 1.0, "continuous": 0.6}
    manner = str(rng.choice(list(least_s), p=[0.4, 0.2, 0.1, 0.2, 0.1]))
    changes = _spaced(changes, least_s[manner] * rng.uniform(1.0, 2.5))
    late_s = rng.uniform(0.02, 0.2)  # after the chord is struck: syncopated pedalling
    early_s = rng.uniform(-0.03, 0.06)  # how long before the next chord the foot comes up
    times: list[float] = []
    values: list[int] = []
    for start, end in itertools.pairwise(changes):
        if manner == "sparse" and rng.random() < 0.5:
            continue
        down = start + max(0.0, late_s + rng.normal(0, 0.02))
        up = max(down + 0.05, end - early_s + rng.normal(0, 0.01))
        low, high = (68, 100) if manner == "half" else (100, 127)
        times.append(down)
        values.append(int(rng.integers(low, high + 1)))
        if manner == "continuous":
            inner = np.sort(rng.uniform(down, up, rng.integers(1, 6)))
            times += inner.tolist()
            values += rng.integers(30, 128, len(inner)).tolist()
        times.append(up)
        values.append(int(rng.integers(0, 30)) if manner == "half" else 0)
    return Pedal.from_arrays(np.maximum(times, 0.0), values) if times else None


def _spaced(times_s: np.ndarray, least_s: float) -> np.ndarray:
    kept = [times_s[0]]
    for time in times_s[1:]:
        if time - kept[-1] >= least_s:
            kept.append(time)
    return np.asarray(kept)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
