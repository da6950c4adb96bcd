"""Sounds of known pitch that no training set of this project is made of, for `pitch.py`.

Everything here is computed in another way than `musicjax.data.timbres` computes it, so that a
network trained on those meets sounds of other kinds: strings are delay lines with a pick at one end
rather than sums of sinusoids, tones are frequency modulation rather than waves by harmonic, voices
are pulses of a flow through poles rather than spectra, saws sweep through a resonance. Rooms are
exponential decays of noise, noise is pink or several voices talking at once. Truth comes from the
control signal; frames in which a note rings on after its end do not count.
"""

import itertools

import numpy as np
from scipy.signal import lfilter

RATE, HOP = 16_000, 160
_TAIL_S = 0.35  # after a note, in which its room may be heard
KINDS = ("string", "fm", "flow", "sweep", "whistle", "small speaker")


def hard(seed: int, seconds: float = 6.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, times in s and Hz (0: none) of one piece; the kinds take turns."""
    rng = np.random.default_rng([0xF2, seed])
    kind = KINDS[seed % len(KINDS)]
    count = round(seconds * RATE)
    time = np.arange(count) / RATE
    hz, gate = _line(rng, kind, time)
    level = lfilter([0.01], [1, -0.99], gate)  # 6 ms
    sound = {
        "string": _string,
        "fm": _fm,
        "flow": _flow,
        "sweep": _sweep,
        "whistle": _whistle,
        "small speaker": _small_speaker,
    }[kind](rng, hz, gate, level)
    sound = 0.1 * sound / max(float(sound.std()), 1e-9)
    if seed % 2:
        sound = _in_a_room(rng, sound)
    below_db = rng.choice([40.0, 25.0, 15.0, 8.0])
    sound = sound + 0.1 * 10 ** (-below_db / 20) * _noise(rng, count, talking=seed % 3 == 1)
    place = np.arange(0, count, HOP)
    truth = np.where(gate[place] > 0, hz[place], 0.0)
    since = np.where(gate > 0, 0, 1).astype(np.int64)
    run = np.arange(count) - np.maximum.accumulate(np.where(since == 0, np.arange(count), -count))
    rings = (since > 0) & (run < _TAIL_S * RATE)
    kept = ~rings[place]
    return sound.astype(np.float32), time[place][kept], truth[kept]


def _line(rng: np.random.Generator, kind: str, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hz and gate of every sample: steps and slurs, with rests long enough for a room to die."""
    low = {"string": 38, "flow": 42, "whistle": 70, "small speaker": 34}.get(kind, 45)
    low += rng.uniform(0, 14)
    midi, gate, now = np.full(len(time), low), np.zeros(len(time)), 0.2
    while now < time[-1] - 0.3:
        notes = int(rng.integers(2, 6))
        begin = now
        for _ in range(notes):
            length = rng.uniform(0.15, 0.7)
            midi[time >= now] = low + rng.uniform(0, 15)
            now += length
        gate[(time >= begin) & (time < min(now, time[-1] - 0.1))] = 1.0
        now += rng.uniform(0.5, 0.9)
    if kind != "string":  # slurs of 10 to 60 ms, and a vibrato
        slur = np.exp(-1 / (rng.uniform(0.003, 0.02) * RATE))
        midi = lfilter([1 - slur], [1, -slur], midi - midi[0]) + midi[0]
        midi = midi + rng.uniform(0, 0.4) * np.sin(2 * np.pi * rng.uniform(4, 7) * time)
    return 440 * 2 ** ((midi - 69) / 12), gate


def _string(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """Karplus and Strong's string: noise in a delay line whose length, the loop's filter and the
    interpolation between samples counted, is the period."""
    del level
    out = np.zeros(len(hz))
    edges = np.flatnonzero(np.diff(np.where(gate > 0, hz, 0.0), prepend=0.0, append=0.0))
    for start, end in itertools.pairwise(edges):
        if gate[start] == 0:
            continue
        delay = RATE / hz[start] - 0.5  # half a sample is the averaging's
        whole = int(delay) - 1
        part = delay - whole  # between 1 and 2: cubic interpolation around it
        taps = np.array([np.prod([(part - j) / (i - j) for j in range(4) if j != i])
                         for i in range(4)])  # fmt: skip
        loop = rng.uniform(0.985, 0.998) * np.convolve(taps, [0.5, 0.5])
        pick = np.zeros(end - start)
        size = min(len(pick), int(delay))
        pick[:size] = rng.uniform(-1, 1, size)
        feedback = np.concatenate([[1.0], np.zeros(whole - 1), -loop])
        out[start:end] = lfilter([1.0], feedback, pick)
    return out


def _fm(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """Chowning's tones: carrier and modulator are whole multiples of the pitch."""
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    carrier, modulator = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3)][int(rng.integers(5))]
    depth = rng.uniform(0.5, 3) * np.clip(800 / hz, 0.2, 1) * level
    return level * np.sin(carrier * phase + depth * np.sin(modulator * phase))


def _flow(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """A voice: Rosenberg's pulses of flow, differentiated, through four poles and their mirrors."""
    phase = np.cumsum(hz / RATE) % 1.0
    opening, closing = rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.2)
    flow = np.where(phase < opening, 0.5 * (1 - np.cos(np.pi * phase / opening)),
                    np.cos(0.5 * np.pi * np.clip((phase - opening) / closing, 0, 1)))  # fmt: skip
    sound = np.diff(flow, prepend=0.0) * level
    for low, high, width in ((300, 850, 70), (900, 2300, 90), (2400, 3200, 120), (3300, 4200, 180)):
        radius = np.exp(-np.pi * width / RATE)
        turn = 2 * np.pi * rng.uniform(low, high) / RATE
        sound = lfilter([1.0], [1, -2 * radius * np.cos(turn), radius**2], sound)
    return sound


def _sweep(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """A saw, four times oversampled, through a resonance that is swept block by block."""
    fine = np.repeat(hz, 4) / (4 * RATE)
    saw = 2 * (np.cumsum(fine) % 1.0) - 1
    saw = lfilter([0.2], [1, -0.8], lfilter(*_low_pass(7000, 4 * RATE), saw))[::4]
    out, state = np.zeros(len(hz)), np.zeros(2)
    speed = rng.uniform(0.3, 3)
    for start in range(0, len(hz), 64):
        centre = 600 * 4 ** np.sin(2 * np.pi * speed * start / RATE)
        radius = np.exp(-np.pi * 150 / RATE)
        poles = [1, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2]
        part = slice(start, start + 64)
        out[part], state = lfilter([1 - radius], poles, saw[part], zi=state)
    return (out + 0.2 * saw) * level


def _low_pass(corner_hz: float, rate: float) -> tuple[list[float], list[float]]:
    keep = np.exp(-2 * np.pi * corner_hz / rate)
    return [1 - keep], [1, -keep]


def _whistle(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """Noise through two resonances at the pitch, on a sine: breath that has its pitch too."""
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    breath = lfilter([0.05], [1, -0.95], rng.normal(size=len(hz)))
    around = (breath * np.cos(phase)) * rng.uniform(0.1, 1.0)
    return level * (np.sin(phase) + around + rng.uniform(0, 0.3) * np.sin(2 * phase))


def _small_speaker(rng: np.random.Generator, hz: np.ndarray, gate: np.ndarray, level: np.ndarray):
    """A low pulse wave of which a small speaker leaves only what lies above some 350 Hz."""
    phase = np.cumsum(hz / RATE)
    width = rng.uniform(0.1, 0.4)
    highest = int(7000 / hz.max())
    sound = np.zeros(len(hz))
    for number in range(1, highest + 1):
        sound += np.sin(np.pi * number * width) / number * np.cos(2 * np.pi * number * phase)
    for _ in range(3):
        sound = sound - lfilter(*_low_pass(rng.uniform(250, 400), RATE), sound)
    return np.tanh(2 * sound) * level


def _in_a_room(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    length = int(0.3 * RATE)
    decay = np.exp(-np.arange(length) / (rng.uniform(0.02, 0.06) * RATE))
    response = rng.normal(size=length) * decay
    response *= rng.uniform(0.2, 0.7) / np.sqrt((response**2).sum())
    response[0] += 1.0
    return np.convolve(sound, response)[: len(sound)]


def _noise(rng: np.random.Generator, count: int, talking: bool) -> np.ndarray:
    """Pink noise, or six hoarse voices at once whose pitch jumps about; of deviation 1."""
    if not talking:
        poles = [1, -2.494956002, 2.017265875, -0.522189400]  # Kellet's filter of 3 dB an octave
        zeros = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
        noise = lfilter(zeros, poles, rng.normal(size=count))
        return noise / noise.std()
    out = np.zeros(count)
    for _ in range(6):
        wander = np.repeat(rng.uniform(80, 300, count // 2000 + 1), 2000)[:count]
        phase = np.cumsum(lfilter([0.002], [1, -0.998], wander) / RATE) % 1.0
        syllables = np.repeat(rng.random(count // 2500 + 1) ** 2, 2500)[:count]
        voice = (phase < 0.1) + 0.5 * rng.normal(size=count)
        out += lfilter([1.0], [1, -1.5, 0.8], voice) * lfilter([0.005], [1, -0.995], syllables)
    out -= out.mean()
    return out / out.std()
