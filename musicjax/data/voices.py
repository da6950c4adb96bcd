"""One voice or instrument at a time, made up on the spot, with its pitch known exactly.

A melody is drawn first (`musicjax.data.melodies`): notes that leap, glide and rest, vibrato, drift,
a swelling or dying level. A timbre (`musicjax.data.timbres`), or the notes of a sound font
(`musicjax.data.font_voices`), then sounds it; a room and a noise follow (`heard`). The truth comes
from the melody and not from the sound. It says of every 10 ms whether there is a pitch, which one,
and whether that can be known: what lies far under the noise, or rings on in a room after its note
has ended, counts neither way. A few clips hold silence, several voices at once, or a tone above all
pitches that count: there the truth has no pitch.

A second of sound costs a few milliseconds.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from musicjax.data.augment import AugmentConfig, convolve, room_response
from musicjax.data.font_voices import font_voices
from musicjax.data.melodies import CONTROL_HZ, Melody, melody
from musicjax.data.timbres import TIMBRES, consonants, noise
from musicjax.notes.contour import Contour

FRAME_S = 0.01  # truth is given at these steps
SILENT_CHANCE = 0.06  # of a clip without any voice
CROWD_CHANCE = 0.06  # of a clip with several voices at once, which have no one pitch
WHISTLE_CHANCE = 0.03  # of a clip with a tone above all pitches that count
_ROOMS = 192  # kept per process
_WINDOW_S = 0.032  # over which a frame's voice is compared with its noise, to either side
_FAINT_DB = 45.0  # below the loudest of the clip, a pitch counts no more
_BURIED_DB, _CLEAR_DB = -6.0, -12.0  # over the noise: counts no more; sounds no more
_ABOVE = (97.5, 118.0)  # MIDI: 2.3 to 7.5 kHz
_BESIDE_DB = 12.0  # below the loudest voice, another counts no more
_BLENDS_CENTS = 60.0  # from a unison, an octave or a twelfth: may be heard as one


def sing(
    rng: np.random.Generator, duration_s: float, sample_rate: int = 16000, font: str = ""
) -> tuple[Float32[np.ndarray, " N"], Contour]:
    """A made-up recording of one voice or instrument, and its pitch every 10 ms.

    Args:
      rng: source of every draw; the same state gives the same recording.
      duration_s: its length in seconds.
      sample_rate: Hz.
      font: a sound font whose instruments play; "" takes timbres that are computed.

    Returns:
      samples (N,), unnormalised, and the contour. Its f0_hz is 0 where there is no pitch, and its
      confidence 1 where that can be known, 0 where a frame counts neither way.
    """
    count = round(duration_s * sample_rate)
    which = rng.random()
    if which < CROWD_CHANCE:
        voices = [_voice(rng, duration_s, sample_rate, font) for _ in range(rng.integers(2, 5))]
        return together(rng, voices, sample_rate)
    silent = which < CROWD_CHANCE + SILENT_CHANCE
    whistles = 1 - which < WHISTLE_CHANCE
    voice, sung = _voice(rng, duration_s, sample_rate, font)
    breaths = consonants(rng, sung, count, sample_rate) if rng.random() < 0.35 else None
    if silent or whistles:
        voice = np.zeros_like(voice)
        breaths = _whistle(rng, duration_s, sample_rate) if whistles else breaths
        sung = Melody(sung.midi, np.zeros_like(sung.level), sung.notes)
    return heard(rng, voice, breaths, sung, sample_rate)


def _voice(
    rng: np.random.Generator, duration_s: float, sample_rate: int, font: str
) -> tuple[Float32[np.ndarray, " N"], Melody]:
    """One voice alone, its peak at 1, and what it sings."""
    count = round(duration_s * sample_rate)
    if font:
        voice, sung = font_voices(font, sample_rate).play(rng, duration_s)
    else:
        sung = melody(rng, duration_s)
        timbre = TIMBRES[int(rng.integers(len(TIMBRES)))]
        voice = timbre(rng, sung, count, sample_rate)
    voice = voice[:count] / max(float(np.abs(voice).max()), 1e-6)
    return voice.astype(np.float32), sung


def _whistle(
    rng: np.random.Generator, duration_s: float, sample_rate: int
) -> Float32[np.ndarray, " N"]:
    """A sine on a melody above all pitches that count."""
    sung = melody(rng, duration_s, low=_ABOVE[0], high=_ABOVE[1])
    place = np.arange(round(duration_s * sample_rate)) * (CONTROL_HZ / sample_rate)
    hz, level = (np.interp(place, np.arange(len(x)), x) for x in (sung.hz, sung.level))
    return (level * np.sin(2 * np.pi * np.cumsum(hz) / sample_rate)).astype(np.float32)


def together(
    rng: np.random.Generator,
    voices: Sequence[tuple[Float32[np.ndarray, " N"], Melody]],
    sample_rate: int = 16000,
) -> tuple[Float32[np.ndarray, " N"], Contour]:
    """Several voices at once: as `sing`, but no frame has a pitch.

    Frames count where two or more of the voices can be heard beside each other and do not blend as
    octaves do, and where none sounds; not where one is alone.
    """
    loud = [rng.uniform(0.4, 1.0) * voice for voice, _ in voices]
    nobody = Melody(voices[0][1].midi, np.zeros_like(voices[0][1].level), voices[0][1].notes)
    samples, told = heard(rng, np.zeros_like(loud[0]), np.sum(loud, axis=0), nobody, sample_rate)
    energy = np.stack([_energy(voice, told.time_s, sample_rate) for voice in loud])
    place = np.rint(told.time_s * CONTROL_HZ).astype(int)
    hz = np.stack([sung.hz[np.minimum(place, len(sung.hz) - 1)] for _, sung in voices])
    audible = energy > 1e-5
    level = np.where(audible, energy, 0.0)
    beside = audible & (level > level.max(axis=0) * 10 ** (-_BESIDE_DB / 10))
    lead = level.argmax(axis=0)
    cents = 1200 * np.abs(np.log2(hz / hz[lead, np.arange(hz.shape[1])]))
    multiples = 1200 * np.log2(np.arange(1, 9))
    blends = np.abs(cents[..., None] - multiples).min(axis=-1) < _BLENDS_CENTS
    known = (beside & ~blends).any(axis=0) | ~audible.any(axis=0)
    return samples, Contour.from_arrays(told.time_s, told.f0_hz, told.confidence * known)


def heard(
    rng: np.random.Generator,
    voice: Float32[np.ndarray, " N"],
    breaths: Float32[np.ndarray, " N"] | None,
    sung: Melody,
    sample_rate: int,
) -> tuple[Float32[np.ndarray, " N"], Contour]:
    """The voice in a room and in noise, and the truth about it. `breaths` have no pitch."""
    count, wet = len(voice), voice
    others = np.zeros(count, np.float32) if breaths is None else breaths
    if rng.random() < 0.4:
        response = _room(int(rng.integers(_ROOMS)), sample_rate)
        wet = convolve(voice, response)
        others = convolve(others, response) if breaths is not None else others
    if rng.random() < 0.85:
        source = voice if voice.any() else others
        loud_parts = source[np.abs(source) > 0.02]
        loud = float(np.sqrt(np.mean(loud_parts**2))) if loud_parts.size else 0.1
        below_db = rng.uniform(-3, 60) if rng.random() < 0.8 else rng.uniform(-3, 20)
        others = others + noise(rng, count, sample_rate) * (loud * 10 ** (-below_db / 20))
    return (wet + others).astype(np.float32), _truth(voice, wet, others, sung, sample_rate)


@functools.lru_cache(maxsize=_ROOMS)
def _room(number: int, sample_rate: int) -> np.ndarray:
    rng = np.random.default_rng([number, 0x4007])
    return room_response(sample_rate, rng, AugmentConfig())[: sample_rate // 2]


def _truth(
    voice: np.ndarray, wet: np.ndarray, others: np.ndarray, sung: Melody, sample_rate: int
) -> Contour:
    time_s = np.arange(0, len(voice) / sample_rate + 1e-9, FRAME_S)
    place = np.minimum(np.rint(time_s * CONTROL_HZ).astype(int), len(sung.level) - 1)
    dry, all_of_it, rest = (_energy(x, time_s, sample_rate) for x in (voice, wet, others))
    # A frame's own instant decides whether a note sounds, its surroundings how loud it is.
    sounds = sung.level[place] > 1e-3
    loudest = max(float(dry.max()), 1e-9)
    faint, rest = loudest * 10 ** (-_FAINT_DB / 10), rest + 1e-12
    clear = (dry > faint) & (dry > rest * 10 ** (_BURIED_DB / 10))
    rings = (all_of_it > 0.1 * faint) & (all_of_it > rest * 10 ** (_CLEAR_DB / 10))
    # Within the window of a note that sounds, its sound is heard but its middle is not in it.
    near = _near(sounds, round(_WINDOW_S / FRAME_S))
    known = np.where(sounds, clear, ~rings | (near & (wet is voice)))
    return Contour.from_arrays(time_s, np.where(sounds, sung.hz[place], 0.0), known.astype(float))


def _energy(x: np.ndarray, time_s: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean square of the samples around each time."""
    total = np.concatenate([[0.0], np.cumsum(x.astype(np.float64) ** 2)])
    middle, reach = np.rint(time_s * sample_rate).astype(int), round(_WINDOW_S * sample_rate)
    first, last = (np.clip(middle + side, 0, len(x)) for side in (-reach, reach))
    return (total[last] - total[first]) / np.maximum(last - first, 1)


def _near(sounds: np.ndarray, frames: int) -> np.ndarray:
    return np.convolve(sounds, np.ones(2 * frames + 1), "same") > 0.5
