"""Melodies for one voice: what a singer or a player does with pitch and level, at every instant."""

from dataclasses import dataclass

import numpy as np

CONTROL_HZ = 1000  # melodies are drawn at this rate
LOWEST, HIGHEST = 23.6, 94.9  # MIDI pitches that can occur: 32 to 1970 Hz


@dataclass(frozen=True)
class Melody:
    """What is sung, at CONTROL_HZ.

    midi     (M,) fractional MIDI pitch, also where nothing sounds
    level    (M,) amplitude, 0 where nothing sounds
    notes    (K, 2) first and last + 1 index of each note
    """

    midi: np.ndarray
    level: np.ndarray
    notes: np.ndarray

    @property
    def hz(self) -> np.ndarray:
        """(M,) fundamental frequency."""
        return 440.0 * 2 ** ((self.midi - 69) / 12)


def melody(
    rng: np.random.Generator,
    duration_s: float,
    *,
    low: float = LOWEST,
    high: float = HIGHEST,
    expressive: bool = True,
) -> Melody:
    """A melody over up to an octave and a half between two MIDI pitches.

    With `expressive`, pitch glides, swings and drifts; without, each note keeps its pitch.
    """
    count = int(np.ceil(duration_s * CONTROL_HZ)) + 1
    span = rng.uniform(1, 18)
    middle = np.clip(rng.normal(60, 17), low + span / 2, high - span / 2)
    pace = np.exp(rng.uniform(np.log(0.09), np.log(0.9)))
    rest_chance, legato = rng.uniform(0, 0.5), rng.random()
    starts, ends, pitches = [], [], []
    now = int(rng.uniform(0, 0.25) * CONTROL_HZ) if rng.random() < 0.7 else 0
    while now < count:
        length = max(50, int(CONTROL_HZ * pace * np.exp(rng.normal(0, 0.5))))
        pitch = middle + rng.uniform(-0.5, 0.5) * span
        starts.append(now)
        pitches.append(pitch if expressive and rng.random() < 0.5 else np.round(pitch))
        gap = 0
        if rng.random() < rest_chance:
            gap = int(CONTROL_HZ * rng.uniform(0.03, 0.5))
        elif rng.random() > legato:
            gap = int(CONTROL_HZ * rng.uniform(0.005, 0.04))
        ends.append(min(now + length, count))
        now += length + gap
    bounds = np.stack([starts, ends], axis=1)
    midi = _pitch(rng, count, bounds, np.asarray(pitches), expressive)
    return Melody(np.clip(midi, low, high), _level(rng, count, bounds), bounds)


def _pitch(
    rng: np.random.Generator, count: int, notes: np.ndarray, pitches: np.ndarray, expressive: bool
) -> np.ndarray:
    """(M,) pitch of every step: held notes, or notes with glides, bends, vibrato and drift."""
    index = np.searchsorted(notes[:, 0], np.arange(count), side="right") - 1
    held = pitches[np.maximum(index, 0)]
    if not expressive:
        return held
    times, values = [0.0], [pitches[0]]
    glide_s = rng.choice([0.004, 0.02, 0.06, 0.15])
    wander = rng.uniform(0, 0.5) ** 2
    for number, ((start, end), pitch) in enumerate(zip(notes, pitches, strict=True)):
        glide = min(glide_s * CONTROL_HZ * rng.uniform(0.5, 1.5), 0.6 * (end - start))
        joined = number > 0 and start - notes[number - 1, 1] < 0.06 * CONTROL_HZ
        if not joined:  # a voice scoops into its first note; times must ascend
            times.append(max(float(start), times[-1] + 0.5))
            values.append(pitch + rng.normal(0, 0.6) * (rng.random() < 0.4))
        else:
            times.append(max(float(start), times[-1] + 0.5))
            values.append(values[-1])
        times.append(times[-1] + glide)
        values.append(pitch)
        times.append(max(float(end), times[-1] + 0.5))
        values.append(pitch + rng.normal(0, wander))
    midi = np.interp(np.arange(count), times, values)
    seconds = np.arange(count) / CONTROL_HZ
    if rng.random() < 0.7:  # vibrato, which often sets in late
        since = seconds - notes[np.maximum(index, 0), 0] / CONTROL_HZ
        depth = rng.uniform(0.03, 1.0) ** 1.5
        swell = np.clip((since - rng.uniform(0, 0.3)) / rng.uniform(0.05, 0.4), 0, 1)
        turn = 2 * np.pi * (rng.uniform(3.5, 7.5) * seconds + rng.random())
        midi += 0.8 * depth * swell * np.sin(turn + 0.3 * np.sin(turn / 5.3))
    knots = rng.normal(0, rng.uniform(0, 0.15), max(2, int(seconds[-1] * 12)))
    return midi + np.interp(seconds, np.linspace(0, seconds[-1], len(knots)), knots)


def _level(rng: np.random.Generator, count: int, notes: np.ndarray) -> np.ndarray:
    """(M,) amplitude: each note's attack, course and release, and a tremolo now and then."""
    level = np.zeros(count)
    attack_s, release_s = np.exp(rng.uniform(np.log([0.003, 0.005]), np.log([0.08, 0.06])))
    course = rng.choice(["held", "held", "swells", "dies"])
    dynamics_db = rng.uniform(0, 12)
    for start, end in notes:
        size = end - start
        step = np.arange(size) / CONTROL_HZ
        shape = np.clip(step / attack_s, 0, 1) * np.clip(
            (size / CONTROL_HZ - step) / release_s, 0, 1
        )
        shape = np.sin(0.5 * np.pi * shape) ** 2
        if course == "swells":
            shape *= 0.3 + 0.7 * np.sin(np.pi * np.linspace(0, 1, size)) ** rng.uniform(0.3, 2)
        elif course == "dies":
            shape *= np.exp(-step * rng.uniform(0.5, 8))
        level[start:end] = shape * 10 ** (-rng.uniform(0, dynamics_db) / 20)
    if rng.random() < 0.25:
        turn = 2 * np.pi * rng.uniform(3, 8) * np.arange(count) / CONTROL_HZ
        level *= 1 - rng.uniform(0, 0.5) * (0.5 + 0.5 * np.sin(turn))
    return level
