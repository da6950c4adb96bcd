"""What a key of the piano can be doing, how notes are written in these words, and read again."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

StateSet = Literal["five", "four", "three_re", "three", "binary"]

# In the order of the training code of the paper. The code of a frame follows from whether the key
# sounded in the frame before and what happens in this one.
STATES: dict[str, tuple[str, ...]] = {
    "five": ("off", "offset", "onset", "sustain", "reonset"),
    "four": ("off", "offset", "onset", "sustain"),
    "three_re": ("off", "onset", "sustain", "reonset"),
    "three": ("off", "onset", "sustain"),
    "binary": ("off", "sustain"),
}
# What is written where a set lacks the word.
_INSTEAD = {"offset": "off", "reonset": "onset", "onset": "sustain"}


def code(state: str, states: StateSet) -> int:
    """The code of a state in a set, or of what is written in its place there."""
    while state not in STATES[states]:
        state = _INSTEAD[state]
    return STATES[states].index(state)


def onset_codes(states: StateSet) -> tuple[int, ...]:
    """Codes at which a note begins; of the binary set none, there a note is where it sounds."""
    return tuple(i for i, s in enumerate(STATES[states]) if s in ("onset", "reonset"))


def sounding_codes(states: StateSet) -> tuple[int, ...]:
    """Codes of frames in which a note sounds."""
    return tuple(i for i, s in enumerate(STATES[states]) if s not in ("off", "offset"))


def usual_transitions(states: StateSet) -> Float[np.ndarray, "S S"]:
    """Log-odds of each state after each, to begin with: [before, after].

    A key that sounds goes on sounding, one that does not stays silent. What cannot follow by the
    way that notes are written is not quite impossible: a network may be wrong.
    """
    names = STATES[states]
    silent = {"off": 0.0, "onset": -4.0, "sustain": -7.0, "offset": -7.0, "reonset": -7.0}
    sounds = {"sustain": 0.0, "offset": -3.0, "reonset": -5.0, "off": -7.0, "onset": -7.0}
    if "offset" not in names:
        sounds["off"] = sounds["offset"]
    if "reonset" not in names:
        sounds["onset"] = sounds["reonset"]
    if "onset" not in names:
        silent["sustain"] = silent["onset"]
    rows = [silent if before in ("off", "offset") else sounds for before in names]
    return np.array([[row[after] for after in names] for row in rows], np.float32)


def going_on(states: StateSet) -> Float[np.ndarray, "S S"]:
    """1 where a key that sounded sounds on or is struck again, else 0: [before, after]."""
    names = STATES[states]
    before = np.isin(np.arange(len(names)), sounding_codes(states))
    after = np.isin(names, ("sustain", "reonset"))
    return np.outer(before, after).astype(np.float32)


def weights(states: StateSet, onset_boost: float) -> Float[np.ndarray, "S"]:
    """What probabilities are multiplied by before the largest is taken."""
    factors = np.ones(len(STATES[states]), np.float32)
    factors[list(onset_codes(states))] = onset_boost
    return factors


def write(
    left: Int[np.ndarray, "notes"],
    right: Int[np.ndarray, "notes"],
    pitch: Int[np.ndarray, "notes"],
    shape: tuple[int, int],
    states: StateSet,
) -> Shaped[np.ndarray, "T P"]:
    """Codes (T, P), uint8, of notes from frame `left` up to frame `right`, in that order.

    Note by note, later ones over earlier ones: re-onset where the key sounded in the frame before,
    else onset; sustain; and offset in the one frame after the last. A note is one frame long at
    least. What lies outside the T frames is cut off.
    """
    count = shape[0]
    roll: np.ndarray = np.zeros(shape, np.uint8)
    sounding = sounding_codes(states)
    onset, sustain, reonset, offset = (
        code(s, states) for s in ("onset", "sustain", "reonset", "offset")
    )
    for a, b, p in zip(left.tolist(), right.tolist(), pitch.tolist(), strict=True):
        b = max(b, a + 1)
        roll[max(a + 1, 0) : max(b, 0), p] = sustain
        if 0 <= a < count:
            roll[a, p] = reonset if a and roll[a - 1, p] in sounding else onset
        if 0 <= b < count:
            roll[b, p] = offset
    return roll


def begins(
    codes: Int[np.ndarray, "T P"], before: Int[np.ndarray, "P"], states: StateSet
) -> tuple[np.ndarray, np.ndarray]:
    """Where notes begin and where they sound, boolean (T, P) each; `before` is the frame before.

    A note begins where a code of an onset follows one that is none: two in a row are one onset
    seen twice. In the binary set it begins where it begins to sound.
    """
    all_codes = np.concatenate([before[None], codes])
    sounds = np.isin(all_codes, sounding_codes(states))
    onsets = onset_codes(states)
    starts = np.isin(all_codes, onsets) if onsets else sounds
    return starts[1:] & ~starts[:-1], sounds[1:]
