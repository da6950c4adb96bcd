"""A composer of random piano music, for training without a corpus.

It knows keys, progressions, accompaniment figures, melodies, ornaments and studies
(`musicjax.data.textures`), plays them with rubato, phrasing, uneven hands and pedal, and now and
then writes what no composer would: clusters, scales over the whole keyboard, single soft notes. A
transcriber needs to have heard every key at every loudness, alone and in company.
"""

from collections.abc import Callable

import numpy as np

from musicjax.data.performance import HIGHEST_PITCH, LOWEST_PITCH, playable, random_pedal
from musicjax.data.textures import (
    SCALES,
    Stroke,
    accompaniment,
    melody,
    pedal_point,
    progression,
    rolled,
    tones_near,
)
from musicjax.errors import ConfigError
from musicjax.notes import Notes, Pedal

Section = tuple[list[Stroke], list[float]]  # strokes, and the beats at which harmony changes
_TAIL_S = 1.5  # notes may ring on for this long after the piece
_SOFTEST = 8.0  # velocity below which a real hammer does not reach the string


def compose(rng: np.random.Generator, duration_s: float, style: str | None = None) -> Notes:
    """Random piano music of about `duration_s` seconds, with key releases and pedal.

    Args:
      rng: the only source of chance; the same state gives the same piece.
      duration_s: no note starts later.
      style: a name in `STYLES`; None draws one for each section of 5 to 25 seconds.

    Returns:
      notes of program 0, sorted by onset, pitches 21 to 108; at least one note.
    """
    if style is not None and style not in STYLES:
        raise ConfigError(f"style is {style!r}; expected one of {', '.join(sorted(STYLES))}.")
    if duration_s <= 0:
        raise ConfigError(f"duration_s is {duration_s}: a piece lasts longer than 0 seconds.")
    parts: list[Notes] = []
    start_s = float(rng.uniform(0.0, min(0.5, duration_s / 4)))
    while start_s < duration_s - 0.5 or not parts:
        length_s = min(float(rng.uniform(5.0, 25.0)), duration_s - start_s)
        name = style or str(rng.choice(list(STYLES), p=_odds()))
        part = _play(rng, STYLES[name](rng, *_beats(rng, length_s)), length_s)
        parts.append(part.shift(start_s))
        start_s += length_s + float(rng.choice([0.0, rng.uniform(0, 1.5)]))
    piece = _joined(parts)
    if not len(piece):
        return compose(rng, duration_s, style)
    return piece


def _joined(parts: list[Notes]) -> Notes:
    whole = Notes.concat(parts)
    return playable(
        whole.onset_s, whole.offset_s, whole.pitch, whole.velocity.astype(float), pedal=whole.pedal
    )


def _beats(rng: np.random.Generator, length_s: float) -> tuple[float, float]:
    """Tempo in beats per second (40 to 220 a minute, log-uniform) and beats needed."""
    per_second = float(np.exp(rng.uniform(np.log(40), np.log(220)))) / 60
    return per_second, length_s * per_second * 1.3 + 1


# --- Styles: (rng, beats per second, number of beats) -> strokes and harmony changes ----------


def song(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """A melody over an accompaniment, in any register and with any balance."""
    chords = progression(rng, beats, int(rng.choice([3, 4, 4, 4, 6])))
    low = float(rng.normal(50, 6))
    strokes = accompaniment(rng, chords, low)
    strokes += melody(rng, chords, float(np.clip(low + rng.normal(22, 6), 50, 98)))
    if rng.random() < 0.25:
        for chord in chords:
            strokes += pedal_point(rng, chord, low - 4, 1.0)
    return strokes, [c.beat for c in chords]


def two_voices(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Two or three melodies against each other, as in an invention."""
    chords = progression(rng, beats, 4)
    strokes: list[Stroke] = []
    for i, centre in enumerate(rng.uniform(40, 90, int(rng.integers(2, 4)))):
        strokes += [s._replace(voice=min(i, 1)) for s in melody(rng, chords, float(centre))]
    return strokes, [c.beat for c in chords]


def chorale(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Thick chords moving together."""
    chords = progression(rng, beats, int(rng.choice([1, 2])))
    centre, count = float(rng.uniform(36, 70)), int(rng.integers(3, 8))
    strokes = []
    for chord in chords:
        pitches = tones_near(chord, centre, count)
        if rng.random() < 0.4 and pitches[0] - 12 >= LOWEST_PITCH:
            pitches = [pitches[0] - 12, *pitches]
        strokes += [
            Stroke(chord.beat, chord.length, p, 5.0 * (p == pitches[-1]), int(p != pitches[-1]))
            for p in pitches
        ]
    return strokes, [c.beat for c in chords]


def runs(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Fast scales and arpeggios, one hand or two in parallel, up to 16 notes a second."""
    chords = progression(rng, beats, 4)
    keys = np.arange(LOWEST_PITCH, HIGHEST_PITCH + 1)
    rate = float(np.clip(rng.uniform(5, 16) / per_second, 1, 12))
    parallel = int(rng.choice([0, 0, 12, 24, 4, 7]))
    at, step, strokes = float(rng.uniform(30, 95)), int(rng.choice([-1, 1])), []
    for chord in chords:
        use = chord.scale if rng.random() < 0.6 else chord.tones
        usable = keys[np.isin(keys % 12, use)]
        index = int(np.argmin(np.abs(usable - at)))
        for i in range(int(chord.length * rate)):
            if rng.random() < 0.08:
                step = -step
            index += step
            if not 0 <= index < len(usable):
                step = -step
                index += 2 * step
            at = float(usable[int(np.clip(index, 0, len(usable) - 1))])
            for pitch in {int(at), int(at) + parallel}:
                if pitch <= HIGHEST_PITCH:
                    strokes.append(
                        Stroke(chord.beat + i / rate, 1.1 / rate, pitch, rng.normal(0, 3))
                    )
    return strokes, [c.beat for c in chords]


def sparse(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Few notes and chords with much silence, left to decay."""
    chords = progression(rng, beats, 4)
    strokes: list[Stroke] = []
    for chord in chords:
        centre = float(rng.uniform(LOWEST_PITCH, HIGHEST_PITCH))
        if rng.random() < 0.3:
            strokes += rolled(rng, chord, centre, 1.0)
        elif rng.random() < 0.8:
            pitches = tones_near(chord, centre, int(rng.integers(1, 4)))
            strokes += [Stroke(chord.beat, chord.length * rng.uniform(0.3, 2), p) for p in pitches]
    return strokes, [c.beat for c in chords]


def scattered(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Keys at random times, everywhere on the keyboard: no harmony to guess from."""
    density = float(np.exp(rng.uniform(np.log(0.5), np.log(14)))) / per_second
    count = max(1, int(rng.poisson(density * beats)))
    lengths = np.exp(rng.normal(np.log(0.4 * per_second), 0.8, count))
    low, high = np.sort(rng.integers(LOWEST_PITCH, HIGHEST_PITCH + 1, 2))
    if rng.random() < 0.6 or high - low < 7:
        low, high = LOWEST_PITCH, HIGHEST_PITCH
    strokes = [
        Stroke(beat, length, int(pitch), accent)
        for beat, length, pitch, accent in zip(
            rng.uniform(0, beats, count),
            lengths,
            rng.integers(low, high + 1, count),
            rng.normal(0, 12, count),
            strict=True,
        )
    ]
    return strokes, list(np.sort(rng.uniform(0, beats, int(beats / 2) + 2)))


def clusters(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Neighbouring keys, fists and thick random chords."""
    strokes: list[Stroke] = []
    beat, changes = 0.0, []
    while beat < beats:
        low = int(rng.integers(LOWEST_PITCH, HIGHEST_PITCH - 12))
        span = np.arange(low, min(low + int(rng.integers(3, 25)), HIGHEST_PITCH + 1))
        pitches = rng.permutation(span)[: int(rng.integers(2, 9))]
        length = float(rng.choice([0.25, 0.5, 1.0, 2.0]))
        strokes += [Stroke(beat, length * rng.uniform(0.5, 1.5), int(p)) for p in pitches]
        changes.append(beat)
        beat += length
    return strokes, changes


def keyboard_scale(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """A scale from one end of the keyboard towards the other, every key heard."""
    scale = list(SCALES.values())[rng.integers(len(SCALES))]
    tonic = int(rng.integers(12))
    keys = [p for p in range(LOWEST_PITCH, HIGHEST_PITCH + 1) if (p - tonic) % 12 in scale]
    keys = keys[int(rng.integers(len(keys))) :] if rng.random() < 0.6 else keys
    keys = keys[::-1] if rng.random() < 0.5 else keys
    unit = float(rng.choice([0.25, 0.5, 1.0, 2.0]))
    hold = float(rng.uniform(0.3, 1.5)) * unit
    strokes = [Stroke(i * unit, hold, keys[i % len(keys)]) for i in range(int(beats / unit))]
    return strokes, [4.0 * i for i in range(int(beats / 4) + 1)]


def repetitions(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """The same keys struck fast, up to 12 times a second."""
    strokes: list[Stroke] = []
    beat, changes = 0.0, []
    while beat < beats:
        unit = per_second / float(rng.uniform(3, 12))
        count = int(rng.integers(2, 17))
        pitches = rng.integers(LOWEST_PITCH, HIGHEST_PITCH + 1, int(rng.choice([1, 1, 1, 2, 3])))
        hold = unit * float(rng.uniform(0.3, 0.95))
        strokes += [
            Stroke(beat + i * unit, hold, int(p), rng.normal(0, 4))
            for i in range(count)
            for p in pitches
        ]
        changes.append(beat)
        beat += count * unit + float(rng.choice([0.0, 0.5, 1.0]))
    return strokes, changes


def soft_singles(rng: np.random.Generator, per_second: float, beats: float) -> Section:
    """Isolated very soft notes."""
    unit = per_second * float(rng.uniform(0.3, 1.5))  # a note every 0.3 to 1.5 seconds
    strokes = [
        Stroke(i * unit, unit * rng.uniform(0.2, 3), int(p), -35.0)
        for i, p in enumerate(rng.integers(LOWEST_PITCH, HIGHEST_PITCH + 1, int(beats / unit) + 1))
    ]
    return strokes, [i * 2 * unit for i in range(int(beats / (2 * unit)) + 1)]


Style = Callable[[np.random.Generator, float, float], Section]
STYLES: dict[str, Style] = {
    f.__name__: f
    for f in (
        song,
        two_voices,
        chorale,
        runs,
        sparse,
        scattered,
        clusters,
        keyboard_scale,
        repetitions,
        soft_singles,
    )
}
_STYLE_ODDS = (44, 10, 7, 8, 7, 12, 3, 3, 4, 2)


def _odds() -> np.ndarray:
    return np.array(_STYLE_ODDS, float) / sum(_STYLE_ODDS)


# --- From beats to seconds, from accents to velocities ----------------------------------------


def _play(rng: np.random.Generator, section: Section, length_s: float) -> Notes:
    strokes, changes = section
    if not strokes:
        return Notes.empty()
    beat, length, pitch, accent, voice = (
        np.asarray(column) for column in zip(*strokes, strict=True)
    )
    last = float(max((beat + length).max(), max(changes, default=0.0))) + 4
    clock = _tempo_curve(rng, last, length_s, float(beat.max()))
    grid = np.linspace(0, last, len(clock))

    onset = np.interp(beat, grid, clock)
    offset = np.interp(beat + length, grid, clock)
    onset = onset + _hands(rng, beat, pitch, voice)
    articulation = rng.uniform(0.35, 1.1, 2)[voice]  # one touch for each hand
    offset = onset + np.maximum(offset - np.interp(beat, grid, clock), 0.03) * articulation
    velocity = _dynamics(rng, beat, accent, voice)

    inside = (onset >= 0) & (onset < length_s)
    offset = np.minimum(offset, length_s + _TAIL_S)
    pedal = None if rng.random() < 0.3 else random_pedal(rng, np.interp(changes, grid, clock))
    return playable(
        onset[inside],
        offset[inside],
        pitch[inside],
        velocity[inside],
        pedal=_until(pedal, length_s),
    )


def _until(pedal: Pedal | None, end_s: float) -> Pedal | None:
    """Pedal moves before `end_s`, and the foot up there."""
    if pedal is None:
        return None
    kept = pedal[pedal.time_s < end_s]
    return Pedal.from_arrays(np.append(kept.time_s, end_s), np.append(kept.value, 0))


def _tempo_curve(
    rng: np.random.Generator, last: float, length_s: float, last_onset: float
) -> np.ndarray:
    """Seconds at each of a grid of beats: steady, or with rubato and broadening at phrase ends."""
    count = int(last * 8) + 2
    beats = np.linspace(0, last, count)
    freedom = float(rng.choice([0.0, rng.uniform(0, 0.08), rng.uniform(0.05, 0.3)]))
    phrase = float(rng.choice([4, 8, 16]))
    wander = np.interp(
        beats, np.arange(0, last + 4, 2), rng.normal(0, 1, len(np.arange(0, last + 4, 2)))
    )
    slower = np.exp(freedom * (wander + 1.5 * ((beats % phrase) / phrase) ** 6))
    clock = np.concatenate([[0.0], np.cumsum(0.5 * (slower[1:] + slower[:-1]) * np.diff(beats))])
    # Styles write 1.3 times the beats that the tempo asks for, so the section is filled.
    reach = float(np.interp(max(last_onset, 1.0), beats, clock))
    return clock * (1.15 * length_s / reach)


def _hands(
    rng: np.random.Generator, beat: np.ndarray, pitch: np.ndarray, voice: np.ndarray
) -> np.ndarray:
    """Deviations of onsets in seconds: jitter, melody lead, rolled chords."""
    jitter = float(rng.choice([0.0, rng.uniform(0, 0.01), rng.uniform(0.005, 0.025)]))
    delay = rng.normal(0, 1, len(beat)) * jitter
    # Pianists bring the melody some 20 to 30 ms early (Goebl 2001).
    delay = delay - np.where(voice == 0, float(rng.uniform(0, 0.035)), 0.0) * (rng.random() < 0.5)
    if rng.random() < 0.2:
        roll_s = float(rng.uniform(0.005, 0.05))
        order = np.lexsort((pitch, beat))
        starts = np.concatenate([[True], np.diff(beat[order]) > 1e-6])
        place = np.arange(len(beat)) - np.maximum.accumulate(
            np.where(starts, np.arange(len(beat)), 0)
        )
        delay[order] += np.minimum(place * roll_s, 0.4)
    return delay + max(0.0, -float(delay.min()))


def _dynamics(
    rng: np.random.Generator, beat: np.ndarray, accent: np.ndarray, voice: np.ndarray
) -> np.ndarray:
    """Velocities: the passage's level, phrase arcs, a long swell, metre, balance and chance."""
    base = float(
        rng.choice(
            [rng.uniform(15, 50), rng.uniform(40, 85), rng.uniform(70, 112)], p=[0.25, 0.5, 0.25]
        )
    )
    phrase = float(rng.choice([4, 8, 16]))
    arc = float(rng.uniform(0, 14)) * np.sin(np.pi * (beat % phrase) / phrase)
    swell = np.interp(beat, np.linspace(0, beat.max() + 1, 4), rng.normal(0, rng.uniform(0, 18), 4))
    metre = float(rng.uniform(0, 7)) * (np.abs(beat - np.round(beat)) < 1e-3)
    balance = np.where(voice == 0, float(rng.uniform(0, 14)), -float(rng.uniform(0, 18)))
    chance = rng.normal(0, float(rng.uniform(1, 8)), len(beat))
    stressed = 25.0 * (rng.random(len(beat)) < 0.01)
    spread = float(rng.uniform(0.3, 1.6))
    level = base + arc + swell + metre + balance + spread * accent + chance + stressed
    return np.maximum(level, _SOFTEST + np.abs(chance))
