"""What the two hands of a composed piano piece play: harmony, accompaniment, melody, studies.

Everything is counted in beats and returned as lists of `Stroke`; `compose` gives them tempo,
dynamics and pedal.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from musicjax.data.performance import HIGHEST_PITCH, LOWEST_PITCH


class Stroke(NamedTuple):
    """One key pressed: beat, length in beats, MIDI pitch, loudness relative to its passage
    (velocity steps), and voice (0 leads, 1 accompanies)."""

    beat: float
    length: float
    pitch: int
    accent: float = 0.0
    voice: int = 0


class Chord(NamedTuple):
    """A harmony: from `beat` for `length` beats, root and tones as pitch classes, and its scale."""

    beat: float
    length: float
    tones: tuple[int, ...]  # root first
    scale: tuple[int, ...]


SCALES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "blues": (0, 3, 5, 6, 7, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
    "octatonic": (0, 1, 3, 4, 6, 7, 9, 10),
    "chromatic": tuple(range(12)),
}
_SCALE_ODDS = np.array([8, 5, 4, 1, 1.5, 1, 1, 1.5, 1.5, 1, 0.5, 0.5, 0.7])

# Where a degree usually goes: rows from, columns to (I ii iii IV V vi vii).
_DEGREES = np.array(
    [
        [1, 2, 1, 4, 4, 3, 1],
        [1, 1, 0, 1, 5, 1, 1],
        [1, 1, 1, 3, 1, 4, 0],
        [4, 2, 1, 1, 5, 1, 1],
        [6, 0, 1, 1, 1, 3, 0],
        [1, 4, 1, 3, 2, 1, 0],
        [5, 0, 1, 0, 1, 1, 1],
    ],
    float,
)
_CHROMATIC_CHORDS = (
    (0, 4, 7),
    (0, 3, 7),
    (0, 3, 6),
    (0, 4, 8),
    (0, 3, 6, 9),
    (0, 4, 7, 10),
    (0, 5, 7),
)


def progression(rng: np.random.Generator, num_beats: float, bar: int) -> list[Chord]:
    """Chords for `num_beats` in bars of `bar` beats: a key, now and then a modulation."""
    tonic = int(rng.integers(12))
    scale = _random_scale(rng)
    pace = float(rng.choice([bar / 2, bar, 2 * bar, 1.0], p=[0.3, 0.45, 0.15, 0.1]))
    size = int(rng.choice([3, 4, 5], p=[0.6, 0.3, 0.1]))
    chromatic = rng.random() < 0.15
    loop = int(rng.choice([0, 4, 8]))  # pop pieces repeat their chords
    degree, beat = 0, 0.0
    chords: list[Chord] = []
    pattern: list[tuple[int, ...]] = []
    while beat < num_beats:
        if rng.random() < 0.03:
            tonic, pattern = (tonic + int(rng.choice([5, 7, 3, 9, 1]))) % 12, []
        pitch_classes = tuple((tonic + step) % 12 for step in scale)
        if loop and len(pattern) >= loop:
            tones = pattern[len(chords) % loop]
        elif chromatic or len(scale) != 7:
            shape = _CHROMATIC_CHORDS[rng.integers(len(_CHROMATIC_CHORDS))]
            root = int(rng.choice(pitch_classes))
            tones = tuple((root + step) % 12 for step in shape)
        else:
            degree = int(rng.choice(7, p=_DEGREES[degree] / _DEGREES[degree].sum()))
            tones = tuple(pitch_classes[(degree + 2 * i) % 7] for i in range(size))
            if rng.random() < 0.07:  # suspended fourth
                tones = (tones[0], pitch_classes[(degree + 3) % 7], *tones[2:])
        pattern.append(tones)
        length = min(pace, num_beats - beat)
        chords.append(Chord(beat, length, tones, pitch_classes))
        beat += length
    return chords


def _random_scale(rng: np.random.Generator) -> tuple[int, ...]:
    return list(SCALES.values())[rng.choice(len(SCALES), p=_SCALE_ODDS / _SCALE_ODDS.sum())]


def tones_near(chord: Chord, centre: float, count: int) -> list[int]:
    """`count` chord tones upwards, the lowest of them near `centre`, inside the keyboard."""
    keys = [p for p in range(LOWEST_PITCH, HIGHEST_PITCH + 1) if p % 12 in chord.tones]
    first = int(np.argmin([abs(p - centre) for p in keys]))
    first = max(0, min(first, len(keys) - count))
    return keys[first : first + count]


def bass_near(chord: Chord, centre: float) -> int:
    """The chord's root nearest to `centre`."""
    keys = range(LOWEST_PITCH + (chord.tones[0] - LOWEST_PITCH) % 12, HIGHEST_PITCH + 1, 12)
    return min(keys, key=lambda p: abs(p - centre))


# --- Accompaniments: (rng, chord, centre, unit) -> strokes of one chord. ---------------------
# `centre` is the MIDI pitch around which the hand lies, `unit` the length of one figure note.

Figure = Callable[[np.random.Generator, Chord, float, float], list[Stroke]]


def _steps(chord: Chord, unit: float) -> np.ndarray:
    return chord.beat + np.arange(max(1, int(chord.length / unit + 1e-6))) * unit


def block(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """The chord at once, held or repeated."""
    pitches = tones_near(chord, centre, int(rng.integers(2, 6)))
    every = float(rng.choice([chord.length, max(unit, 1.0), 2 * unit]))
    return [
        Stroke(b, every, p, -4.0 * (i > 0), 1)
        for i, b in enumerate(_steps(chord, every))
        for p in pitches
    ]


def broken(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """Arpeggios up, down, or up and down, over one to four octaves."""
    pitches = tones_near(chord, centre, int(rng.integers(3, 13)))
    shape = int(rng.integers(3))
    order = [pitches, pitches[::-1], pitches + pitches[-2:0:-1]][shape]
    hold = float(rng.choice([unit, 0.7 * unit, 2 * unit, chord.length]))
    return [
        Stroke(b, hold, order[i % len(order)], 3.0 * (i % len(order) == 0), 1)
        for i, b in enumerate(_steps(chord, unit))
    ]


def alberti(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """Low, high, middle, high; or a relative of it."""
    low, middle, high = tones_near(chord, centre, 3)
    orders = (
        (low, high, middle, high),
        (low, middle, high, middle),
        (low, high),
        (high, low, middle),
    )
    order = orders[rng.integers(len(orders))]
    return [
        Stroke(b, unit, order[i % len(order)], 2.0 * (i % len(order) == 0), 1)
        for i, b in enumerate(_steps(chord, unit))
    ]


def stride(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """Bass on the beat, chord after it; waltzes and ragtime."""
    group = int(rng.choice([2, 3, 4]))
    bass = bass_near(chord, centre - 12)
    pitches = tones_near(chord, centre, int(rng.integers(2, 5)))
    octave = rng.random() < 0.3 and bass - 12 >= LOWEST_PITCH
    strokes = []
    for i, beat in enumerate(_steps(chord, max(unit, 0.5))):
        if i % group == 0:
            strokes += [
                Stroke(beat, unit, p, 4.0, 1) for p in ([bass, bass - 12] if octave else [bass])
            ]
        else:
            strokes += [Stroke(beat, 0.6 * unit, p, -3.0, 1) for p in pitches]
    return strokes


def walking(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """A bass that walks through the scale in even notes, sometimes in octaves."""
    keys = [p for p in range(LOWEST_PITCH, HIGHEST_PITCH) if p % 12 in chord.scale]
    at = int(np.argmin([abs(p - bass_near(chord, centre - 8)) for p in keys]))
    octaves = rng.random() < 0.25
    strokes = []
    for beat in _steps(chord, max(unit, 0.5)):
        pitch = keys[at]
        strokes.append(Stroke(beat, max(unit, 0.5), pitch, rng.normal(0, 2), 1))
        if octaves:
            strokes.append(Stroke(beat, max(unit, 0.5), min(pitch + 12, HIGHEST_PITCH), -2.0, 1))
        at = int(np.clip(at + rng.choice([-2, -1, 1, 2]), 0, len(keys) - 1))
    return strokes


def tremolo(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """Two tones or groups in fast alternation."""
    pitches = tones_near(chord, centre, int(rng.integers(2, 5)))
    split = int(rng.integers(1, len(pitches)))
    groups = (pitches[:split], pitches[split:])
    fast = min(unit, 0.25) / float(rng.choice([1, 2]))
    return [
        Stroke(b, fast, p, rng.normal(0, 2), 1)
        for i, b in enumerate(_steps(chord, fast))
        for p in groups[i % 2]
    ]


def repeated(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """One key or a chord struck again and again."""
    pitches = tones_near(chord, centre, int(rng.integers(1, 4)))
    length = unit * float(rng.uniform(0.3, 0.95))
    return [Stroke(b, length, p, rng.normal(0, 2), 1) for b in _steps(chord, unit) for p in pitches]


def rolled(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """A harp-like spread chord that is held."""
    pitches = tones_near(chord, centre, int(rng.integers(3, 9)))
    spread = float(rng.uniform(0.03, 0.25))
    return [
        Stroke(chord.beat + i * spread, max(chord.length - i * spread, 0.2), p, 0.0, 1)
        for i, p in enumerate(pitches)
    ]


def pedal_point(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """A long low octave or fifth."""
    bass = bass_near(chord, centre - 14)
    above = int(rng.choice([0, 7, 12]))
    return [Stroke(chord.beat, chord.length, p, 0.0, 1) for p in sorted({bass, bass + above})]


def silent(rng: np.random.Generator, chord: Chord, centre: float, unit: float) -> list[Stroke]:
    """Nothing: the other hand plays alone."""
    return []


FIGURES: tuple[Figure, ...] = (
    block,
    broken,
    alberti,
    stride,
    walking,
    tremolo,
    repeated,
    rolled,
    pedal_point,
    silent,
)
_FIGURE_ODDS = np.array([4, 6, 3, 3, 2, 1, 2, 2, 2, 1.5])


def accompaniment(rng: np.random.Generator, chords: list[Chord], centre: float) -> list[Stroke]:
    """A figure (sometimes two) carried through the chords."""
    odds = _FIGURE_ODDS / _FIGURE_ODDS.sum()
    chosen = [FIGURES[i] for i in rng.choice(len(FIGURES), int(rng.integers(1, 4)), p=odds)]
    unit = float(rng.choice([0.125, 0.25, 1 / 3, 0.5, 1.0], p=[0.05, 0.3, 0.2, 0.35, 0.1]))
    strokes, figure = [], chosen[0]
    frozen = int(rng.integers(2**31))  # the same draws for each chord: a figure keeps its shape
    for i, chord in enumerate(chords):
        if i % 4 == 0:
            figure = chosen[rng.integers(len(chosen))]
        strokes += figure(np.random.default_rng(frozen), chord, centre, unit)
    return strokes


# --- Melodies ---------------------------------------------------------------------------------

_RHYTHMS: tuple[tuple[float, ...], ...] = (
    (1, 1),
    (2,),
    (1.5, 0.5),
    (0.5, 0.5, 1),
    (1, 0.5, 0.5),
    (0.5, 1, 0.5),
    (0.5, 0.5, 0.5, 0.5),
    (0.75, 0.25, 0.75, 0.25),
    (0.25, 0.25, 0.5, 0.25, 0.25, 0.5),
    (0.25,) * 8,
    (1 / 3,) * 6,
    (2 / 3, 1 / 3, 2 / 3, 1 / 3),
    (0.125,) * 8 + (1,),
    (1, 1 / 3, 1 / 3, 1 / 3),
    (0.2,) * 5 + (1,),
)
_RHYTHM_ODDS = np.array([3, 2, 2, 3, 3, 2, 5, 2, 2, 2, 2, 1.5, 0.4, 1, 0.3])


def melody(rng: np.random.Generator, chords: list[Chord], centre: float) -> list[Stroke]:
    """Phrases over the chords: few rhythms, steps more than leaps, chord tones on strong beats,
    ornaments, doublings and rests."""
    end = chords[-1].beat + chords[-1].length
    odds = _RHYTHM_ODDS / _RHYTHM_ODDS.sum()
    motifs = [_RHYTHMS[i] for i in rng.choice(len(_RHYTHMS), int(rng.integers(1, 4)), p=odds)]
    width = float(rng.uniform(5, 16))
    leap = float(rng.uniform(1.0, 3.5))
    rest_chance, ornament_chance = rng.uniform(0, 0.2), rng.choice([0.0, 0.03, 0.12])
    legato = float(rng.choice([0.35, 0.8, 1.0, 1.08]))
    doubling = int(rng.choice([0, 0, 0, 0, 12, -12, 24, 3, 4]))
    strokes: list[Stroke] = []
    beat, pitch, now = 0.0, centre, 0
    while beat < end - 1e-6:
        motif = motifs[rng.integers(len(motifs))]
        if rng.random() < rest_chance:
            beat += sum(motif)
            continue
        for length in motif:
            while now + 1 < len(chords) and chords[now + 1].beat <= beat + 1e-6:
                now += 1
            strong = abs(beat - round(beat)) < 1e-6
            allowed = chords[now].tones if strong and rng.random() < 0.7 else chords[now].scale
            pitch = _next_pitch(rng, pitch, centre, width, leap, allowed)
            note = Stroke(beat, length * legato, int(pitch), 3.0 * strong + rng.normal(0, 2), 0)
            ornamented = length >= 0.5 and rng.random() < ornament_chance
            strokes += ornament(rng, note, chords[now].scale) if ornamented else [note]
            beat += length
    if doubling:
        strokes += [
            s._replace(pitch=s.pitch + doubling, accent=s.accent - 4)
            for s in strokes
            if LOWEST_PITCH <= s.pitch + doubling <= HIGHEST_PITCH
        ]
    return [s for s in strokes if s.beat < end]


def _next_pitch(
    rng: np.random.Generator,
    pitch: float,
    centre: float,
    width: float,
    leap: float,
    allowed: tuple[int, ...],
) -> float:
    homesick = (centre - pitch) / width  # a melody that strays is drawn back
    wanted = pitch + rng.normal(homesick * 2, leap) * (3 if rng.random() < 0.08 else 1)
    if rng.random() < 0.06:
        return pitch
    keys = [p for p in range(int(wanted) - 4, int(wanted) + 6) if p % 12 in allowed and p != pitch]
    best = min(keys, key=lambda p: abs(p - wanted)) if keys else wanted
    return float(np.clip(best, LOWEST_PITCH, HIGHEST_PITCH))


def ornament(rng: np.random.Generator, note: Stroke, scale: tuple[int, ...]) -> list[Stroke]:
    """The note as a trill, mordent, turn or with grace notes."""
    upper = next(note.pitch + i for i in (1, 2, 3, 4) if (note.pitch + i) % 12 in scale or i == 4)
    lower = next(note.pitch - i for i in (1, 2, 3, 4) if (note.pitch - i) % 12 in scale or i == 4)
    fast = float(rng.uniform(0.06, 0.14))
    kind = rng.choice(["trill", "mordent", "turn", "grace"])
    if kind == "trill":
        count = max(3, int(note.length / fast))
        pitches = [upper if i % 2 else note.pitch for i in range(count)]
    elif kind == "mordent":
        pitches = [note.pitch, int(rng.choice([upper, lower])), note.pitch]
    elif kind == "turn":
        pitches = [upper, note.pitch, lower, note.pitch]
    else:
        pitches = [int(rng.choice([upper, lower])), note.pitch]
    strokes = [
        note._replace(beat=note.beat + i * fast, length=fast, pitch=p)
        for i, p in enumerate(pitches)
    ]
    rest = max(note.length - fast * (len(pitches) - 1), fast)
    strokes[-1] = strokes[-1]._replace(length=rest)
    return [s for s in strokes if LOWEST_PITCH <= s.pitch <= HIGHEST_PITCH]
