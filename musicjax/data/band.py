"""A small built-in band: composed pieces for several instruments and drums, without any sound font.

Notes are sums of harmonics under an envelope, drum hits are sweeps and noise, and every clip has
instruments of its own kind within their family's limits. It is enough to try a transcriber of
several instruments out and to test one; to learn real instruments a model needs real sounds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from musicjax.data.compose import compose
from musicjax.data.ensemble import EnsembleConfig, orchestrate
from musicjax.notes import Notes

_MOST_HARMONICS = 24
_KICKS, _SNARES, _HATS = (35, 36), (38, 40), (42, 44, 46)
_TOMS = (41, 43, 45, 47, 48, 50)
_CYMBALS = (49, 51, 52, 53, 55, 57, 59)


@dataclass(frozen=True)
class _Tone:
    """How a family of instruments sounds; every clip scatters it a little."""

    slope: float  # amplitude of harmonic n: n ** -slope
    even: float = 1.0  # of even harmonics: small where a tube is closed at one end
    attack_s: float = 0.01
    decay_s: float | None = None  # time constant of what is struck or plucked; None: it is held
    release_s: float = 0.06
    vibrato_cents: float = 0.0
    breath: float = 0.0  # noise, relative to the tone


# By the first General MIDI program of a family, or by program where a family differs within.
_TONES: dict[int, _Tone] = {
    0: _Tone(1.5, decay_s=0.9, attack_s=0.003),
    6: _Tone(0.7, decay_s=0.5, attack_s=0.001),  # harpsichord
    11: _Tone(2.6, decay_s=1.2, attack_s=0.002, even=0.3),  # vibraphone
    16: _Tone(0.9, attack_s=0.005, release_s=0.02),
    24: _Tone(1.2, decay_s=0.6, attack_s=0.002),
    32: _Tone(1.8, decay_s=1.0, attack_s=0.004),
    40: _Tone(1.0, attack_s=0.05, vibrato_cents=15.0, breath=0.01),
    45: _Tone(1.4, decay_s=0.2, attack_s=0.003),  # pizzicato
    48: _Tone(1.2, attack_s=0.1, vibrato_cents=8.0, release_s=0.15, breath=0.02),
    56: _Tone(0.6, attack_s=0.03, vibrato_cents=5.0, breath=0.01),
    64: _Tone(0.8, attack_s=0.03, vibrato_cents=8.0, breath=0.03),
    68: _Tone(0.3, attack_s=0.02, vibrato_cents=8.0, breath=0.01),  # oboe
    71: _Tone(0.9, attack_s=0.03, even=0.1, breath=0.02),  # clarinet
    72: _Tone(2.2, attack_s=0.05, vibrato_cents=12.0, breath=0.08),
}
PROGRAMS = tuple(_TONES)


def play_band(
    rng: np.random.Generator, duration_s: float, sample_rate: int
) -> tuple[Float32[np.ndarray, " N"], Notes]:
    """A composed piece for a random line-up, and its notes; samples as long as they sound."""
    piece = orchestrate(
        compose(rng, duration_s),
        rng,
        EnsembleConfig(parts=(1, 4)),
        programs=PROGRAMS,
        drums=beat(rng, duration_s),
    )
    return render_band(piece, sample_rate, rng), piece


def beat(rng: np.random.Generator, duration_s: float) -> Notes:
    """Drums in bars of four: kick, snare and hats, of another pattern and pace every time."""
    sixteenth_s = 60.0 / rng.uniform(70, 160) / 4
    onset_s, key, velocity = [], [], []
    kicks = {0, int(rng.choice([6, 8, 10])), int(rng.choice([3, 10, 14]))}
    every = int(rng.choice([1, 2, 2, 4]))
    hat = int(rng.choice(_HATS))
    for place in range(int(duration_s / sixteenth_s) + 1):
        within = place % 16
        hits = [int(rng.choice(_KICKS))] if within in kicks else []
        hits += [_SNARES[0]] if within in (4, 12) else []
        hits += [hat] if within % every == 0 else []
        hits += [int(rng.choice(_TOMS))] if within > 12 and rng.random() < 0.1 else []
        hits += [_CYMBALS[0]] if place % 64 == 0 and rng.random() < 0.5 else []
        for hit in hits:
            onset_s.append(place * sixteenth_s)
            key.append(hit)
            velocity.append(int(np.clip(rng.normal(90 if within % 4 == 0 else 70, 10), 20, 127)))
    onsets = np.array(onset_s)
    return Notes.from_arrays(onsets, onsets + 0.05, key, velocity, is_drum=True)


def render_band(
    notes: Notes, sample_rate: int, rng: np.random.Generator
) -> Float32[np.ndarray, " N"]:
    """Notes of any programs and drums as mono sound, unnormalised."""
    notes = notes.sustained()
    out = np.zeros(int((notes.duration_s + 1.0) * sample_rate) + 1)
    tones = {p: _scattered(_tone_of(p), rng) for p in np.unique(notes.program).tolist()}
    for note in notes:
        level = 0.15 * (note.velocity / 127) ** 1.7
        if note.is_drum:
            sound = _hit(note.pitch, sample_rate, rng)
        else:
            length_s = note.offset_s - note.onset_s
            sound = _note(tones[note.program], note.pitch, length_s, sample_rate, rng)
        begin = max(round(note.onset_s * sample_rate), 0)
        end = min(begin + len(sound), len(out))
        out[begin:end] += level * sound[: end - begin]
    return out.astype(np.float32)


def _tone_of(program: int) -> _Tone:
    families = [first for first in _TONES if first // 8 == program // 8]
    near = program if program in _TONES else min(families, default=0)
    return _TONES[near]


def _scattered(tone: _Tone, rng: np.random.Generator) -> _Tone:
    def around(value: float) -> float:
        return float(value * np.exp(rng.normal(0, 0.2)))

    return _Tone(
        around(tone.slope),
        min(around(tone.even), 1.0),
        around(tone.attack_s),
        None if tone.decay_s is None else around(tone.decay_s),
        around(tone.release_s),
        around(tone.vibrato_cents),
        around(tone.breath),
    )


def _note(
    tone: _Tone, pitch: int, length_s: float, sample_rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " N"]:
    time_s = np.arange(round((length_s + 4 * tone.release_s) * sample_rate)) / sample_rate
    hz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    sway = (
        tone.vibrato_cents / 1200 * np.log(2) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time_s)
    )
    angle = 2 * np.pi * np.cumsum(hz * (1 + sway)) / sample_rate
    number = np.arange(1, min(_MOST_HARMONICS, max(int(0.45 * sample_rate / hz), 1)) + 1)
    loudness = number**-tone.slope * np.where(number % 2 == 0, tone.even, 1.0)
    sound = np.zeros(len(time_s))
    for n, level in zip(number.tolist(), loudness.tolist(), strict=True):
        sound += level * np.sin(n * angle + rng.uniform(0, 2 * np.pi))
    sound += tone.breath * rng.normal(0, 1, len(time_s))
    held = 1 - np.exp(-time_s / tone.attack_s)
    if tone.decay_s is not None:
        held *= np.exp(-time_s / (tone.decay_s * 2.0 ** ((60 - pitch) / 24)))
    return sound * held * np.exp(-np.maximum(time_s - length_s, 0) / tone.release_s)


def _hit(key: int, sample_rate: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """One drum: a falling tone, noise, or both."""
    low_hz, decay_s, noise, noise_s = 0.0, 0.1, 0.0, 0.1
    if key in _KICKS:
        low_hz, decay_s, noise, noise_s = 50.0, 0.12, 0.2, 0.01
    elif key in _SNARES:
        low_hz, decay_s, noise, noise_s = 180.0, 0.06, 1.0, 0.09
    elif key in _HATS:
        noise, noise_s = 0.7, 0.2 if key == 46 else 0.03
    elif key in _TOMS:
        low_hz, decay_s, noise, noise_s = 70.0 + 12.0 * (key - 41), 0.2, 0.1, 0.02
    elif key in _CYMBALS:
        noise, noise_s = 0.8, 0.5
    else:
        low_hz, decay_s, noise, noise_s = 200.0 + 15.0 * (key - 30), 0.05, 0.2, 0.02
    time_s = (
        np.arange(round(5 * max(decay_s if low_hz else 0.0, noise_s) * sample_rate)) / sample_rate
    )
    tone = np.sin(2 * np.pi * low_hz * (time_s + 0.03 * (1 - np.exp(-time_s / 0.03))))
    hiss = rng.normal(0, 1, len(time_s))
    if key in _HATS or key in _CYMBALS:
        hiss = np.diff(hiss, prepend=0.0)  # bright
    return 2 * (tone * np.exp(-time_s / decay_s) + noise * hiss * np.exp(-time_s / noise_s))
