"""Melodies on the instruments of a sound font, with their pitch known.

Each instrument's notes are rendered once, and measured: what swings, beats or is tuned elsewhere is
left out, so that the pitch of what remains is a number. A melody then reads the nearest note faster
or slower, which bends pitch exactly.
"""

import functools
import os
from dataclasses import dataclass

import numpy as np

from musicjax.data.fluidsynth import font_programs, synthesize
from musicjax.data.melodies import CONTROL_HZ, Melody, melody
from musicjax.errors import DataError
from musicjax.notes import Notes

# General MIDI programs with one steady pitch a note. For tests a whole font is kept apart.
PROGRAMS = (
    *(0, 4, 5, 6, 7, 8, 10, 11, 12, 13),  # struck
    *(16, 17, 18, 19, 20, 21, 22),  # organs
    *(24, 25, 26, 27, 28, 29, 30, 32, 33, 34, 35, 36, 38, 39),  # guitars and basses
    *(40, 41, 42, 43, 45, 46, 48, 52, 53),  # strings and choir
    *(56, 57, 58, 59, 60, 61, 64, 65, 66, 67),  # brass and saxophones
    *(68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79),  # winds
    *(80, 81, 82, 83, 85, 87, 104, 105, 107, 109, 110, 111),  # waves and the rest
)
KEYS = range(29, 94, 4)  # MIDI pitches that are rendered
HELD_S, EACH_S = 1.4, 1.8
_OFF_CENTS, _SWING_CENTS = 35.0, 10.0  # how far a note may be tuned, and how far it may swing
_FAR = 5.0  # semitones between a melody's note and the nearest that was rendered
_LEAST_KEYS = 4  # of a program that is used at all


@dataclass(frozen=True)
class _Tone:
    samples: np.ndarray  # int16
    midi: float  # as measured


class FontVoices:
    """The usable notes of a sound font at one sample rate.

    tones: program to its notes, ascending in pitch.
    """

    def __init__(self, font: str, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.tones: dict[int, list[_Tone]] = {}
        for program in sorted(set(PROGRAMS) & font_programs(font)):
            found = _tones(font, program, sample_rate)
            if len(found) >= _LEAST_KEYS:
                self.tones[program] = found
        if not self.tones:
            raise DataError(
                f"{font} has no instrument with a steady pitch: choose a font for General MIDI."
            )

    def play(self, rng: np.random.Generator, duration_s: float) -> tuple[np.ndarray, Melody]:
        """Samples (N,) of one instrument, and the melody that it plays."""
        tones = self.tones[[*self.tones][int(rng.integers(len(self.tones)))]]
        pitches = np.array([tone.midi for tone in tones])
        bent = bool(rng.random() < 0.5)
        sung = melody(
            rng, duration_s, low=pitches[0] - 2, high=min(pitches[-1] + 2, 94.9), expressive=bent
        )
        count = round(duration_s * self.sample_rate)
        place = np.arange(count) * (CONTROL_HZ / self.sample_rate)
        midi = np.interp(place, np.arange(len(sung.midi)), sung.midi)
        level = np.interp(place, np.arange(len(sung.level)), sung.level)
        shaped = bool(rng.random() < 0.3)  # else the instrument's own attack and course
        out = np.zeros(count, np.float32)
        heard = np.zeros_like(sung.level)
        for start, end in sung.notes:
            first, last = (
                min(round(i * self.sample_rate / CONTROL_HZ), count) for i in (start, end)
            )
            if last <= first:
                continue
            part = midi[first:last]
            nearest = int(np.argmin(np.abs(pitches - np.median(part))))
            read = np.cumsum(2 ** ((part - pitches[nearest]) / 12)) - 1
            tone = tones[nearest].samples
            size = int(np.searchsorted(read, len(tone) - 1))  # as much of it as there is
            gate = level[first : first + size] if shaped else _gate(size, self.sample_rate)
            out[first : first + size] = _read(tone, read[:size]) * gate
            until = start + int(size * CONTROL_HZ / self.sample_rate)
            heard[start:until] = sung.level[start:until] if shaped else 1.0
        return out, Melody(sung.midi, heard, sung.notes)


def _gate(size: int, sample_rate: int) -> np.ndarray:
    fade = min(size, sample_rate // 100)
    gate = np.ones(size)
    if fade:
        gate[size - fade :] = np.linspace(1, 0, fade)
    return gate


def _read(tone: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The tone between its samples, by cubic interpolation (Catmull-Rom)."""
    padded = np.pad(tone.astype(np.float32) / 32768, (1, 3))
    left = place.astype(np.int64)
    t = (place - left).astype(np.float32)
    a, b, c, d = (padded[left + k] for k in range(4))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


@functools.lru_cache(maxsize=4)
def font_voices(font: str | os.PathLike[str], sample_rate: int) -> FontVoices:
    """The font's notes, rendered when first asked for (half a minute) and kept in the process."""
    return FontVoices(os.fspath(font), sample_rate)


def _tones(font: str, program: int, sample_rate: int) -> list[_Tone]:
    onset = 0.05 + EACH_S * np.arange(len(KEYS))
    velocity = np.random.default_rng(program).integers(60, 120, len(KEYS))
    notes = Notes.from_arrays(onset, onset + HELD_S, np.array(KEYS), velocity, program)
    audio = synthesize(notes, font, sample_rate, gain=0.6, tail_s=0.2)
    found = []
    for start, pitch in zip(onset, KEYS, strict=True):
        first = round(start * sample_rate)
        tone = audio[first : first + round(HELD_S * sample_rate)]
        cents = measured_cents(tone, pitch, sample_rate)
        if cents is not None:
            whole = tone / max(float(np.abs(tone).max()), 1e-6)
            found.append(_Tone((whole * 32767).astype(np.int16), pitch + cents / 100))
    return found


def measured_cents(tone: np.ndarray, pitch: int, sample_rate: int) -> float | None:
    """How far a tone is from its nominal pitch, by autocorrelation; None where that is unsure.

    Unsure is what changes by more than 10 cents over the tone, lies more than 35 away, repeats at
    half the period too (an octave higher), or hardly repeats.
    """
    period = sample_rate / (440 * 2 ** ((pitch - 69) / 12))
    peak = float(np.abs(tone).max())
    found = []
    for start in (0.08, 0.15, 0.22, 0.29, 0.36, 0.5, 0.65, 0.8, 1.0, 1.2):
        first = round(start * sample_rate)
        part = tone[first : first + max(round(0.06 * sample_rate), round(6 * period))]
        if len(part) < 3 * period or float(np.abs(part).max()) < max(0.02 * peak, 1e-4):
            continue
        cents = _cents_of(part, period)
        if cents is None:
            return None
        found.append(cents)
    if len(found) < 2 or np.ptp(found) > 2 * _SWING_CENTS:
        return None
    mean = float(np.mean(found))
    return mean if abs(mean) <= _OFF_CENTS else None


def _cents_of(part: np.ndarray, period: float) -> float | None:
    size = 1 << (2 * len(part) - 1).bit_length()
    power = np.abs(np.fft.rfft(part - part.mean(), size)) ** 2
    overlap = len(part) - np.arange(len(part))
    repeats = np.fft.irfft(power, size)[: len(part)] / overlap
    repeats /= max(float(repeats[0]), 1e-12)
    lags = np.arange(len(part))
    many = max(1, int(min(220.0, 0.6 * len(part)) / period))
    low, high = (round(many * period * 2 ** (c / 1200)) for c in (-100, 100))
    best = low + int(np.argmax(repeats[low : high + 1]))
    if best in (low, high) and high - low > 2:
        return None
    half = float(np.interp(period / 2, lags, repeats))
    if repeats[best] < 0.6 or (period > 12 and half > 0.95 * repeats[best]):
        return None
    a, b, c = repeats[best - 1 : best + 2]
    lag = best + 0.5 * (a - c) / min(a - 2 * b + c, -1e-9)
    return float(-1200 * np.log2(lag / (many * period)))
