"""Timbres for melodies whose pitch is known: voices, strings, winds, brass, plucked, organs, waves.

A sustained tone is a wave of one period, drawn by its harmonics, read at the melody's own phase: so
its pitch is the melody's to rounding, and whatever filters it afterwards moves no pitch. Each note
has its own wave, with as many harmonics as fit below half the sample rate, in a dark and a bright
form that its loudness mixes. Plucked tones are sums of decaying sinusoids, a little inharmonic.
"""

from collections.abc import Callable

import numpy as np

from musicjax.data.melodies import CONTROL_HZ, Melody

_TABLE = 2048  # samples of a stored period
_MOST = 160  # harmonics
_TOP = 0.475  # of the sample rate: no harmonic lies above
_SIZE, _STEP = 512, 256  # of the moving filter

# (number of a harmonic, its frequency in Hz) to amplitude, for the dark and for the bright form.
Spectrum = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Timbre = Callable[[np.random.Generator, Melody, int, int], np.ndarray]


def _controls(sung: Melody, count: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequency in Hz and level of every sample."""
    place = np.arange(count) * (CONTROL_HZ / sample_rate)
    steps = np.arange(len(sung.level))
    return np.interp(place, steps, sung.hz), np.interp(place, steps, sung.level)


def periodic(
    rng: np.random.Generator,
    sung: Melody,
    count: int,
    sample_rate: int,
    spectrum: Spectrum,
    *,
    jitter: float = 0.0,
    shimmer: float = 0.0,
    brightness: float = 1.0,
) -> np.ndarray:
    """(N,) a tone on the melody. jitter, shimmer: deviations of frequency and level, as shares.

    `brightness` is how strongly the level moves the tone between its dark and its bright form.
    """
    hz, level = _controls(sung, count, sample_rate)
    hz, level = _unsteady(rng, hz, level, sample_rate, jitter, shimmer)
    phase = np.cumsum(hz / sample_rate) + rng.random()
    phase -= np.floor(phase)
    place = (phase * _TABLE).astype(np.float32)
    below = np.minimum(place.astype(np.int32), _TABLE - 1)  # rounding may reach the end
    between = place - below
    bright = (level / max(float(level.max()), 1e-6)) ** brightness
    out = np.zeros(count, np.float32)
    fixed = rng.uniform(0, 2 * np.pi, _MOST) * rng.choice([0.0, 1.0])
    scatter = 10 ** (rng.normal(0, rng.uniform(0, 5), _MOST) / 20)
    for start, end in (sung.notes * (sample_rate / CONTROL_HZ)).astype(int):
        part = slice(start, min(end, count))
        if part.start >= count or part.stop <= part.start:
            continue
        highest = float(hz[part].max())
        number = np.arange(1, max(2, min(_MOST, int(_TOP * sample_rate / highest)) + 1))
        forms = spectrum(number, number * float(np.median(hz[part])))
        tables = [_table(form * scatter[: len(number)], fixed[: len(number)]) for form in forms]
        dark, light = (
            table[below[part]] * (1 - between[part]) + table[below[part] + 1] * between[part]
            for table in tables
        )
        mix = bright[part]
        out[part] = (dark + mix * (light - dark)) * level[part]
    return out


def _unsteady(
    rng: np.random.Generator,
    hz: np.ndarray,
    level: np.ndarray,
    sample_rate: int,
    jitter: float,
    shimmer: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Frequency and level with small fast deviations, some ten or hundred a second."""
    if jitter == 0 and shimmer == 0:
        return hz, level
    size = max(2, int(len(hz) / sample_rate * rng.uniform(40, 200)))
    place = np.linspace(0, size - 1, len(hz))
    faster, louder = (np.interp(place, np.arange(size), rng.normal(0, 1, size)) for _ in range(2))
    return hz * (1 + jitter * faster), level * np.maximum(0.1, 1 + shimmer * louder)


def _table(amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """One period and its first sample again, of mean square 1."""
    half = np.zeros(_TABLE // 2 + 1, np.complex64)
    half[1 : len(amplitude) + 1] = amplitude * np.exp(1j * phase)
    wave = np.fft.irfft(half, _TABLE)
    wave = wave / max(float(np.sqrt(np.mean(wave**2))), 1e-12)
    return np.append(wave, wave[0]).astype(np.float32)


def _tilted(number: np.ndarray, dark: float, bright: float) -> tuple[np.ndarray, np.ndarray]:
    return number ** -float(dark), number ** -float(bright)


def _peaks(rng: np.random.Generator, low: float, high: float, count: int) -> Callable:
    """A random resonant body: gain by frequency in Hz."""
    centres = np.exp(rng.uniform(np.log(low), np.log(high), count))
    widths = rng.uniform(0.08, 0.35, count)
    gains = rng.uniform(0.5, 5, count)
    floor = rng.uniform(0.05, 0.6)

    def gain(hz: np.ndarray) -> np.ndarray:
        away = np.log(np.maximum(hz, 1.0)[..., None] / centres) / widths
        return floor + (gains * np.exp(-0.5 * away**2)).sum(axis=-1)

    return gain


# Timbres --------------------------------------------------------------------------------------


def vocal(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A sung or spoken voice: a glottal source with breath, through formants that move."""
    dark, bright = rng.uniform(1.2, 2.4), rng.uniform(0.6, 1.4)
    open_db = rng.uniform(-4, 8)  # the glottal formant lifts the lowest harmonics

    def source(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lift = np.where(number <= 2, 10 ** (open_db / 20), 1.0)
        return lift * number**-dark, lift * number**-bright

    jitter, shimmer = rng.uniform(0, 0.006), rng.uniform(0, 0.12)
    tone = periodic(rng, sung, count, sample_rate, source, jitter=jitter, shimmer=shimmer)
    _, level = _controls(sung, count, sample_rate)
    air = 10 ** (-rng.uniform(12, 50) / 20)
    tone += (air * level * rng.standard_normal(count)).astype(np.float32)
    return _formants(rng, tone, sample_rate)


def _formants(rng: np.random.Generator, tone: np.ndarray, sample_rate: int) -> np.ndarray:
    """The tone through five resonances that move from vowel to vowel."""
    blocks = len(tone) // _STEP + 2
    padded = np.pad(tone, (_STEP, blocks * _STEP + _SIZE - len(tone) - _STEP))
    vowels = max(2, int(blocks * _STEP / sample_rate * rng.uniform(0.5, 8)))
    size = rng.uniform(0.85, 1.3)  # of the vocal tract, small to large
    low = np.array([260, 650, 1700, 3000, 4000]) * size
    high = np.array([900, 2400, 3300, 4200, 5500]) * size
    stations = rng.uniform(low, high, (vowels, 5))
    place = np.linspace(0, vowels - 1, blocks)
    centres = np.stack([np.interp(place, np.arange(vowels), f) for f in stations.T], axis=1)
    widths = rng.uniform(50, 130, 5) + 0.03 * centres
    gains = np.array([1, 0.7, 0.35, 0.25, 0.15]) * 10 ** (rng.normal(0, 4, 5) / 20)
    hz = np.fft.rfftfreq(_SIZE, 1 / sample_rate)
    shape = np.full((blocks, len(hz)), rng.uniform(0.005, 0.05))
    for i in range(5):
        away = (hz - centres[:, i : i + 1]) / widths[:, i : i + 1]
        shape += gains[i] / (1 + away**2)
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_SIZE) / _SIZE)).astype(np.float32)
    index = _STEP * np.arange(blocks)[:, None] + np.arange(_SIZE)
    filtered = np.fft.irfft(np.fft.rfft(padded[index] * window) * shape, _SIZE) * window
    out = np.zeros((blocks + 1) * _STEP, np.float32)
    out[: blocks * _STEP] += filtered[:, :_STEP].ravel()
    out[_STEP:] += filtered[:, _STEP:].ravel()
    return out[_STEP : _STEP + len(tone)]


def bowed(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A bowed string: a sawtooth in a body of many resonances, with the bow's own noise."""
    body = _peaks(rng, 200, 5000, 9)
    dark, bright = rng.uniform(1.1, 1.8), rng.uniform(0.7, 1.2)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return number**-dark * body(hz), number**-bright * body(hz)

    tone = periodic(rng, sung, count, sample_rate, spectrum, jitter=rng.uniform(0, 0.003))
    return tone + _air(rng, sung, count, sample_rate, (-60, -20))


def reed(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A reed: odd harmonics lead (clarinet), or a formant does (oboe, bassoon, saxophone)."""
    even = 10 ** (-rng.uniform(0, 40) / 20) if rng.random() < 0.5 else 1.0
    body = _peaks(rng, 400, 3500, 3)
    dark, bright = rng.uniform(1.0, 2.2), rng.uniform(0.5, 1.2)
    crossing = rng.uniform(5, 12)  # above, even harmonics are as strong as odd ones

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = np.where(number % 2 == 0, even + (1 - even) * np.clip(number / crossing, 0, 1), 1)
        return share * number**-dark * body(hz), share * number**-bright * body(hz)

    tone = periodic(rng, sung, count, sample_rate, spectrum, shimmer=rng.uniform(0, 0.05))
    return tone + _air(rng, sung, count, sample_rate, (-60, -22))


def flute(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A flute or a whistle: few harmonics, sometimes the second strongest, and breath."""
    dark, bright = rng.uniform(2.0, 4.5), rng.uniform(1.0, 2.5)
    second = 10 ** (rng.uniform(-15, 12) / 20)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lift = np.where(number == 2, second, 1.0)
        return lift * number**-dark, lift * number**-bright

    tone = periodic(rng, sung, count, sample_rate, spectrum, shimmer=rng.uniform(0, 0.08))
    return tone + _air(rng, sung, count, sample_rate, (-45, -12))


def brass(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A brass instrument: the louder, the more of its upper harmonics; fundamental often weak."""
    peak = np.exp(rng.uniform(np.log(300), np.log(2000)))
    width, slope = rng.uniform(0.5, 1.2), rng.uniform(1.5, 3.5)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loud = np.exp(-0.5 * (np.maximum(np.log(hz / peak), 0) / width) ** 2)
        lowest = 1 / (1 + (0.4 * peak / hz) ** 2)
        return loud * lowest * number**-slope, loud * lowest * number**-0.2

    return periodic(
        rng, sung, count, sample_rate, spectrum, brightness=rng.uniform(0.7, 3),
        jitter=rng.uniform(0, 0.003),
    )  # fmt: skip


def wave(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A synthesizer's wave: saw, square, triangle, a narrow pulse, or a sine; filtered or not."""
    kind = rng.choice(["saw", "square", "triangle", "pulse", "sine"])
    duty, corner = rng.uniform(0.03, 0.5), np.exp(rng.uniform(np.log(300), np.log(8000)))
    order = rng.choice([0.0, 1.0, 2.0])

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        odd = number % 2
        form = {
            "saw": 1 / number,
            "square": (odd + 1e-3) / number,
            "triangle": (odd + 1e-3) / number**2,
            "pulse": np.abs(np.sin(np.pi * number * duty)) / number + 1e-4,
            "sine": (number == 1) + 1e-4,
        }[kind]
        kept = (1 + (hz / corner) ** 2) ** (-order / 2)
        return form * kept, form

    return periodic(rng, sung, count, sample_rate, spectrum, brightness=rng.uniform(0.5, 2))


def organ(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """Drawbars: a few harmonics of equal rank, of which the lowest is the pitch."""
    drawn = rng.random(16) < np.array([1, 0.8, 0.7, 0.7, 0.4, 0.5, 0.1, 0.5, *[0.1] * 8])
    gains = drawn * 10 ** (-rng.uniform(0, 15, 16) / 20)
    gains[0] = max(gains[0], 0.1)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        form = np.where(number <= 16, gains[np.minimum(number, 16) - 1], 0.0) + 1e-4 / number
        return form, form

    return periodic(rng, sung, count, sample_rate, spectrum)


def trap(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """What leads to errors of an octave: the fundamental weak or missing, even harmonics far above
    odd ones, a single harmonic that stands out, or harmonics at random."""
    slope = rng.uniform(0.3, 1.6)
    kind = rng.choice(["missing", "even", "single", "scattered"])
    gone = int(rng.integers(1, 4))
    weak, strong = 10 ** (-rng.uniform(10, 50) / 20), 10 ** (rng.uniform(6, 24) / 20)
    odd = 10 ** (-rng.uniform(8, 26) / 20)
    chosen = int(rng.integers(2, 7)) if rng.random() < 0.5 else 2
    spread = 10 ** (rng.normal(0, 9, _MOST) / 20)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        form = number**-slope
        if kind == "missing":
            form = np.where(number <= gone, weak, 1.0) * form
        elif kind == "even":
            form = np.where(number % 2 == 1, odd, 1.0) * form
        elif kind == "single":
            form = np.where(number == chosen, strong, 1.0) * form
        else:
            form = spread[: len(number)] * form
        return form, form * number**0.3

    return periodic(rng, sung, count, sample_rate, spectrum, jitter=rng.uniform(0, 0.003))


def few(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A few harmonics stand out so far above the others, a narrow formant on each, that they sound
    like a tone of their own; the fundamental often less than any."""
    slope = rng.uniform(0.3, 1.2)
    gains = np.full(_MOST, 10 ** (-rng.uniform(10, 30) / 20))
    gains[rng.integers(0, 12, rng.integers(1, 4))] = 1.0
    gains[0] *= 10 ** (-rng.choice([0.0, rng.uniform(5, 50)]) / 20)

    def spectrum(number: np.ndarray, hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        form = gains[: len(number)] * number**-slope
        return form, form * number**0.3

    return periodic(rng, sung, count, sample_rate, spectrum, jitter=rng.uniform(0, 0.003))


def plucked(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """A plucked or struck string, or a bar: harmonics that decay, the higher the faster.

    Pitch follows the melody; a stiff string's harmonics lie a little above whole multiples.
    """
    hz, level = _controls(sung, count, sample_rate)
    stiffness = 10 ** rng.uniform(-6, -3.7)
    slope, place = rng.uniform(0.5, 2.0), rng.uniform(0.05, 0.5)
    last_s, loss = np.exp(rng.uniform(np.log(0.15), np.log(4))), rng.uniform(0.2, 1.2)
    out = np.zeros(count, np.float32)
    for start, end in (sung.notes * (sample_rate / CONTROL_HZ)).astype(int):
        part = slice(start, min(end, count))
        if part.start >= count or part.stop <= part.start:
            continue
        f0 = float(np.median(hz[part]))
        number = np.arange(1, max(2, min(36, int(_TOP * sample_rate / hz[part].max())) + 1))
        ratio = number * np.sqrt((1 + stiffness * number**2) / (1 + stiffness))
        amplitude = number**-slope * (np.abs(np.sin(np.pi * number * place)) + 0.03)
        decay = 6.9 / last_s * (f0 / 220) ** 0.5 * (1 + loss * (number - 1) * 0.3)
        turn = np.cumsum(hz[part]) * (2 * np.pi / sample_rate)
        wide = min(len(number), 24)
        seconds = (np.arange(len(turn)) / sample_rate).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, wide)
        tone = np.zeros(len(turn), np.float32)
        unit = np.exp(1j * turn).astype(np.complex64) if stiffness < 1e-5 else None
        running = unit
        for i in range(wide):
            if unit is not None:  # harmonic to rounding: powers of the fundamental
                value = (running * np.exp(1j * phase[i]).astype(np.complex64)).real
                running = running * unit
            else:
                value = np.sin((ratio[i] * turn + phase[i]).astype(np.float32))
            tone += np.float32(amplitude[i]) * np.exp(-np.float32(decay[i]) * seconds) * value
        out[part] = tone / np.sqrt((amplitude**2).sum()) * np.minimum(level[part], 1)
    return out


def _air(
    rng: np.random.Generator,
    sung: Melody,
    count: int,
    sample_rate: int,
    range_db: tuple[float, float],
) -> np.ndarray:
    """Breath or bow noise that follows the level."""
    _, level = _controls(sung, count, sample_rate)
    share = 10 ** (rng.uniform(*range_db) / 20)
    return (share * level).astype(np.float32) * noise(rng, count, sample_rate)


TIMBRES: tuple[Timbre, ...] = (
    vocal,
    vocal,
    vocal,
    bowed,
    reed,
    flute,
    brass,
    wave,
    organ,
    trap,
    trap,
    few,
    few,
    few,
    plucked,
)


# Sounds without pitch -------------------------------------------------------------------------


def noise(rng: np.random.Generator, count: int, sample_rate: int) -> np.ndarray:
    """(N,) float32 noise of mean square 1: white to brown, or a band; sometimes with mains hum."""
    size = 1 << max(8, (count - 1).bit_length())
    white = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    shape = np.maximum(hz, 20.0) ** -rng.uniform(0.0, 1.1)
    if rng.random() < 0.2:
        centre = np.exp(rng.uniform(np.log(200), np.log(5000)))
        shape *= 0.02 + np.exp(-0.5 * (np.log(np.maximum(hz, 1) / centre) / 0.7) ** 2)
    found = np.fft.irfft(white * shape, size)[:count].astype(np.float32)
    found /= max(float(np.sqrt(np.mean(found**2))), 1e-9)
    if rng.random() < 0.08:
        turn = 2 * np.pi * rng.choice([50.0, 60.0]) * np.arange(count) / sample_rate
        found = found + rng.uniform(0.2, 1.0) * np.sin(turn + 0.7 * np.sin(turn)).astype(np.float32)
    return found


def consonants(rng: np.random.Generator, sung: Melody, count: int, sample_rate: int) -> np.ndarray:
    """(N,) bursts and hisses, mostly where no note sounds: consonants, strokes, keys."""
    out = np.zeros(count, np.float32)
    hiss = noise(rng, count, sample_rate)
    sharp = np.diff(hiss, prepend=0) * 0.7  # high-passed
    loud = 10 ** (-rng.uniform(0, 26) / 20)
    for start in (sung.notes[:, 0] * (sample_rate / CONTROL_HZ)).astype(int):
        if rng.random() < 0.5:
            continue
        length = int(sample_rate * np.exp(rng.uniform(np.log(0.01), np.log(0.15))))
        first = max(0, start - int(length * rng.uniform(0.5, 1.0)))
        size = max(0, min(first + length, count) - first)
        if size == 0:
            continue
        bump = np.hanning(size) if rng.random() < 0.6 else np.exp(-5 * np.linspace(0, 1, size))
        source = sharp if rng.random() < 0.6 else hiss
        out[first : first + size] += loud * 0.3 * bump * source[first : first + size]
    return out
