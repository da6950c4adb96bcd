"""From how much each pitch is present to one pitch: argmax, local average, or the likeliest path.

The likeliest path is a hidden Markov model of 360 pitches and one state without pitch, worked out
by Viterbi's algorithm on activations that are weighed against each frame's highest. Pitch moves by
small steps, seldom leaps, and seldom begins or ends. Around the path's bin the pitch is refined by
a weighted average, so that it is not tied to the 20 cents of a bin. Nothing is random: the same
activations always give the same contour. What the published decoders do instead is told in
`card.md`.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from musicjax.errors import ConfigError
from musicjax.models.crepe.model import BIN_CENTS, BINS, CrepeConfig, bin_cents, cents_to_hz
from musicjax.notes.contour import Contour

_AROUND = 4  # bins on either side of the average (Kim et al.'s code)
_NEAR = 2  # bins from the path within which the activation's own peak is looked for
# How far pitch may move in a frame: 12 bins in 10 ms, in the published decoder; falls off linearly.
_STEP_CENTS_PER_S = 12 * BIN_CENTS / 0.01
_SWITCHES_PER_S = 2.0  # how often a voice is expected to begin or to end

Decoder = Literal["viterbi", "local", "argmax"]


def decode(
    activations: Mapping[str, np.ndarray],
    config: CrepeConfig,
    *,
    decoder: Decoder = "viterbi",
    voicing: float | None = None,
    silence_db: float = -60.0,
    min_hz: float = 31.0,
    max_hz: float = 2006.0,
    leap: float = 1e-4,
) -> Contour:
    """The pitch contour of one recording.

    activations: pitch (T, 360), 0 to 1, and level_db (T,), as `Crepe.activations` gives them.
    decoder: "viterbi", the likeliest path; "local", the average around each frame's highest bin
    (the published default); "argmax", the middle of the highest bin.
    voicing: how sure the network must be, 0 to 1, for a frame to have a pitch; at 0 every frame
    has one, silent ones too; None takes the config's own. silence_db: quieter frames, in dB of
    full scale, have none.
    min_hz, max_hz: bins outside are not looked at.
    leap: how likely the pitch is to leap from one frame to the next, for "viterbi"; a smaller one
    gives fewer leaps of an octave, 1 lets each frame speak for itself.

    Returns a contour whose f0 is 0 Hz where there is no pitch. Its confidence is the activation
    at the pitch, or the highest one where there is none, and 0 where there is silence.
    Raises ConfigError for options that cannot work.
    """
    voicing = config.voicing if voicing is None else voicing
    _check(decoder, voicing, leap)
    salience = np.asarray(activations["pitch"], np.float32)
    level = np.asarray(activations["level_db"], np.float64)
    hop_s = config.frontend.hop_length / config.frontend.sample_rate
    time_s = np.arange(len(salience)) * hop_s
    allowed = _bins_between(min_hz, max_hz)
    salience = np.where(allowed, salience, np.float32(0))
    loud = level >= silence_db if voicing > 0 else np.ones(len(level), bool)
    highest = salience.argmax(axis=1) if len(salience) else np.zeros(0, np.int64)
    if decoder == "viterbi":
        path = likeliest_path(np.where(loud[:, None], salience, 0), hop_s, voicing, leap)
        voiced = path < BINS
        path = np.where(voiced, path, highest)
        path = _own_peak(salience, path)
    else:
        path = highest
        voiced = _at(salience, path) >= voicing
    confidence = np.where(loud, _at(salience, path), 0.0)
    cents = bin_cents()[path] if decoder == "argmax" else _local_average(salience, path)
    f0 = np.where(voiced & loud, cents_to_hz(cents), 0.0)
    return Contour.from_arrays(time_s, f0, confidence, level)


def _check(decoder: str, voicing: float, leap: float) -> None:
    if decoder not in ("viterbi", "local", "argmax"):
        raise ConfigError(f"decoder is {decoder!r}; choose viterbi, local or argmax.")
    if not 0 <= voicing <= 1:
        raise ConfigError(f"voicing is {voicing}; it must lie between 0 (all frames) and 1.")
    if not 0 < leap <= 1:
        raise ConfigError(f"leap is {leap}; it is a probability above 0, at most 1.")


def _bins_between(min_hz: float, max_hz: float) -> np.ndarray:
    hz = cents_to_hz(bin_cents())
    allowed = (hz >= min_hz) & (hz <= max_hz)
    if not allowed.any():
        raise ConfigError(
            f"no pitch lies between min_hz {min_hz:g} and max_hz {max_hz:g}; the model knows "
            f"{hz[0]:.1f} to {hz[-1]:.1f} Hz."
        )
    return allowed


def _at(salience: np.ndarray, path: np.ndarray) -> np.ndarray:
    return salience[np.arange(len(path)), path].astype(np.float64)


def _own_peak(salience: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The highest bin within `_NEAR` of each frame's bin."""
    window = path[:, None] + np.arange(-_NEAR, _NEAR + 1)
    inside = (window >= 0) & (window < BINS)
    values = np.take_along_axis(salience, np.clip(window, 0, BINS - 1), axis=1)
    best = np.where(inside, values, -1).argmax(axis=1)
    return np.take_along_axis(window, best[:, None], axis=1)[:, 0]


def _local_average(salience: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Cents averaged over the bins around each frame's own, by activation."""
    window = path[:, None] + np.arange(-_AROUND, _AROUND + 1)
    inside = (window >= 0) & (window < BINS)
    window = np.clip(window, 0, BINS - 1)
    weight = np.where(inside, np.take_along_axis(salience, window, axis=1), 0).astype(np.float64)
    total = weight.sum(axis=1)
    average = (weight * bin_cents()[window]).sum(axis=1) / np.maximum(total, 1e-12)
    return np.where(total > 0, average, bin_cents()[path])


def likeliest_path(salience: np.ndarray, hop_s: float, voicing: float, leap: float) -> np.ndarray:
    """The likeliest state of each frame: (T,) bins 0 to 359, and 360 where there is no pitch.

    salience: (T, 360) activations; a frame of zeros is silence. `voicing` is the activation of a
    single clean pitch at which a lone frame would be as likely to have a pitch as to have none; 0
    leaves no state without pitch. A frame's evidence for having a pitch is its highest activation,
    and for which one, how near a bin's activation comes to it: so a frame that hesitates between
    two octaves is as surely voiced as one that does not.
    """
    count = len(salience)
    width = max(1, round(_STEP_CENTS_PER_S * hop_s / BIN_CENTS) - 1)
    steps = np.arange(-width, width + 1)
    near = (width + 1 - np.abs(steps)) / (width + 1) ** 2  # sums to 1
    switch = min(0.5, _SWITCHES_PER_S * hop_s) if voicing > 0 else 0.0
    log_near = np.log(np.maximum((1 - leap) * (1 - switch) * near, 1e-30)).astype(np.float32)
    log_leap = np.float32(math.log(leap * (1 - switch) / BINS))
    log_begin = np.float32(math.log(max(switch, 1e-30) / BINS))
    log_end, log_rest = (np.float32(math.log(max(p, 1e-30))) for p in (switch, 1 - switch))
    voiced, unvoiced = _evidence(salience, voicing)
    # A held pitch costs the chance of staying where it is; so must a held rest, or rests would win.
    unvoiced = unvoiced + max(log_near[width], log_leap)
    backwards = np.zeros((count, BINS + 1), np.int16)
    score = np.full(BINS + 2 * width, -np.inf, np.float32)  # with a margin on either side
    now = score[width : width + BINS]
    reach = np.lib.stride_tricks.sliding_window_view(score, 2 * width + 1)  # (360, 2 * width + 1)
    places, silent = np.arange(BINS), np.float32(0.0)
    for frame in range(count):
        if frame == 0:
            now[:], silent = voiced[0], unvoiced[0]
            continue
        candidates = reach + log_near
        choice = candidates.argmax(axis=1)
        best = candidates[places, choice]
        origin = choice + places - width
        top = int(now.argmax())
        for value, state in ((now[top] + log_leap, top), (silent + log_begin, BINS)):
            better = best < value
            best[better], origin[better] = value, state
        backwards[frame, :BINS] = origin
        stay, stop = silent + log_rest, now[top] + log_end
        backwards[frame, BINS] = BINS if stay >= stop else top
        silent = max(stay, stop) + unvoiced[frame]
        now[:] = best + voiced[frame]
        largest = max(float(now.max()), float(silent))
        now -= largest
        silent -= np.float32(largest)
    path = np.zeros(count, np.int64)
    if count:
        state = BINS if silent > now.max() else int(now.argmax())
        for frame in range(count - 1, -1, -1):
            path[frame] = state
            state = int(backwards[frame, state])
    return path


def _evidence(salience: np.ndarray, voicing: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of each frame under each pitch (T, 360) and under none (T,)."""
    total = salience.sum(axis=1, keepdims=True)
    highest = salience.max(axis=1, keepdims=True, initial=0.0)
    flat = total <= 0
    if voicing <= 0:
        share = np.where(flat, 1 / BINS, salience / np.maximum(total, 1e-12))
        return np.log(share + 1e-7).astype(np.float32), np.full(len(salience), -np.inf, np.float32)
    near = np.where(flat, 1.0, salience / np.maximum(highest, 1e-12))
    sure = np.clip(np.where(flat, 0.0, highest), 1e-3, 1 - 1e-3)
    even = min(max(voicing, 1e-3), 1 - 1e-3)
    unvoiced = np.log(even / (1 - even) * (1 - sure[:, 0]))
    voiced = np.log(near * sure + 1e-7)
    return voiced.astype(np.float32), unvoiced.astype(np.float32)
