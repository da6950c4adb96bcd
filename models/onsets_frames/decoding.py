"""From what the network heard to notes: by thresholds, or by the likeliest path of each pitch."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from musicjax.errors import ConfigError
from musicjax.models.onsets_frames.model import OnsetsFramesConfig
from musicjax.notes import Notes, PieceDecoder, check_values

_CELLS_AT_ONCE = 1 << 21  # frames times pitches decoded together: about 80 MB of work space
# What a frame probability is compared with when it falls: the highest of its note, forgotten by
# half in this time. A string dies away over seconds, a damper stops it in less.
_HALF_LIFE_S = 0.54
# The end that the offset roll tells is looked for so far from where frame falls, either way; and a
# probability of that counts as none.
_AROUND_S, _UNHEARD = 0.512, 0.01


def decode(
    activations: Mapping[str, np.ndarray],
    config: OnsetsFramesConfig,
    *,
    onset_threshold: float | None = None,
    frame_threshold: float | None = None,
    offset_threshold: float | None = None,
    frame_fall: float | None = None,
    offset_worth: float | None = None,
    split_reonsets: bool | None = None,
    velocity_at: Literal["mean", "onset"] = "mean",
    min_duration_s: float = 0.0,
    viterbi_alpha: float | None = None,
) -> Notes:
    """Notes from activations (T, P): `onset`, `frame`, and `velocity` and `offset` if there.

    A note starts where the onset roll rises above its threshold and lasts while onset or frame
    is on. A second onset inside it starts a second note that ends with it (the PyTorch port), or
    with `split_reonsets` also ends the first (Magenta). With `offset_threshold`, a note also ends
    where the offset roll rises, which no published form does by default; with `frame_fall` where
    frame is below that part of the highest it had in this note, which fades by half in 0.54 s
    (0: never; ours, for what dampers do to long notes). With `offset_worth` that is a first guess:
    within half a second of it, the end is where most speaks for it: each frame before it above that
    part, less those below, and an offset e times as likely as that many frames. Velocity is the
    mean over the onset frames of the note (port) or the value where it starts (Magenta). Notes
    shorter than `min_duration_s` are left out. What is None is the config's: it belongs to the
    weights. No loop over frames; pitches are taken together, or in groups when the recording is so
    long that together they would need gigabytes.

    With `viterbi_alpha` (Magenta's is 0.5) none of these thresholds and rules is used: for each
    pitch the likeliest path through on and off is found (`two_state_path`), and a note is where it
    is on. The path weighs all frames against each other: there is no threshold to tune, and no
    second onset inside a note.

    Raises ConfigError for thresholds and alpha outside 0..1, and for a negative weight or duration.
    """
    values: dict[str, Any] = {
        "onset_threshold": onset_threshold,
        "frame_threshold": frame_threshold,
        "frame_fall": frame_fall,
        "offset_worth": offset_worth,
        "split_reonsets": split_reonsets,
    }
    check_values({**values, "offset_threshold": offset_threshold, "min_duration_s": min_duration_s})
    config = replace(config, **{name: v for name, v in values.items() if v is not None})
    hop_s = config.frontend.hop_length / config.frontend.sample_rate
    path = None
    if viterbi_alpha is not None:
        onset, frame = (np.asarray(activations[name]) for name in ("onset", "frame"))
        path = two_state_path(onset, frame, viterbi_alpha)
    count, pitches = np.shape(activations["onset"])
    groups = min(pitches, 1 + count * pitches // _CELLS_AT_ONCE)
    edges = [pitches * g // groups for g in range(groups + 1)]
    found = []
    for low, high in pairwise(edges):
        some = {name: np.asarray(value)[:, low:high] for name, value in activations.items()}
        if path is None:
            onset = some["onset"] > config.onset_threshold
            frame = some["frame"] > config.frame_threshold
        else:
            frame = path[:, low:high]
            onset = _rises(frame)
        offset = None
        if offset_threshold is not None and "offset" in some:
            offset = some["offset"] > offset_threshold
        start, stop, pitch = _spans(onset, frame, offset, config.split_reonsets)
        if config.frame_fall and path is None:
            stop = _ends(some, onset, (start, stop, pitch), config, hop_s)
        strength = _velocity(some.get("velocity"), onset, start, stop, pitch, velocity_at)
        found.append((start, stop, pitch + low, strength))
    start, stop, pitch, strength = (np.concatenate(column) for column in zip(*found, strict=True))
    midi = np.clip(strength * config.velocity_scale + config.velocity_bias, 1, 127)
    keep = np.lexsort((pitch, start))
    keep = keep[(stop - start)[keep] * hop_s >= min_duration_s]
    return Notes.from_arrays(
        onset_s=start[keep] * hop_s,
        offset_s=stop[keep] * hop_s,
        pitch=pitch[keep] + config.min_pitch,
        velocity=midi[keep].astype(np.uint8),
    )


def decoder(
    config: OnsetsFramesConfig, *, min_duration_s: float = 0.0, **options: Any
) -> PieceDecoder | None:
    """Decodes a long recording while it is heard, as `decode` does with these options.

    None with `viterbi_alpha`: that path weighs all frames against each other.
    """
    if options.get("viterbi_alpha") is not None:
        return None
    frames_per_s = config.frontend.sample_rate / config.frontend.hop_length
    weight = options.get("offset_worth")
    sought = config.offset_worth if weight is None else weight
    return PieceDecoder(
        partial(decode, config=config, **options),
        frames_per_s,
        # From as far before the first guess as an end can lie to as far after it as is looked.
        settle=2 * round(_AROUND_S * frames_per_s) if sought else 0,
        min_duration_s=min_duration_s,
    )


def _rises(roll: np.ndarray) -> np.ndarray:
    """Where a boolean roll (T, P) is on and was not in the frame before."""
    return roll & ~np.pad(roll, ((1, 0), (0, 0)))[:-1]


def _spans(
    onset: np.ndarray, frame: np.ndarray, offset: np.ndarray | None, split_reonsets: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First frame, frame after the last, and pitch index of every note in boolean rolls (T, P)."""
    count, pitches = onset.shape
    rise = _rises(onset)
    ends = ~(onset | frame)
    if offset is not None:
        ends |= _rises(offset) & ~onset
    if split_reonsets:
        ends |= rise
    # next_end[t]: the first frame >= t that ends a note; a note that starts at t asks t + 1.
    steps = np.where(ends, np.arange(count)[:, None], count)
    next_end = np.minimum.accumulate(steps[::-1], axis=0)[::-1]
    next_end = np.concatenate([next_end, np.full((1, pitches), count)])
    start, pitch = np.nonzero(rise)
    return start, next_end[start + 1, pitch], pitch


_Spans = tuple[np.ndarray, np.ndarray, np.ndarray]  # first frame, frame after the last, pitch


def _ends(
    rolls: Mapping[str, np.ndarray],
    onset: np.ndarray,
    notes: _Spans,
    config: OnsetsFramesConfig,
    hop_s: float,
) -> np.ndarray:
    """The frame in which each note has ended: by the fall of frames, and by the offset roll."""
    fade = 0.5 ** (hop_s / _HALF_LIFE_S)
    below = _below(rolls["frame"], onset, notes, config.frame_fall, fade)
    if not config.offset_worth or "offset" not in rolls:
        return _first_below(below, notes)
    around = round(_AROUND_S / hop_s)
    return _likeliest_ends(below, rolls["offset"], notes, config.offset_worth, around)


def _rows(notes: _Spans) -> tuple[np.ndarray, np.ndarray]:
    """All notes end to end in one row: the number of the note, and frames since its start."""
    start, stop, _ = notes
    length = stop - start
    note = np.repeat(np.arange(len(length)), length)
    return note, np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)


def _below(
    frame: np.ndarray, onset: np.ndarray, notes: _Spans, part: float, fade: float
) -> np.ndarray:
    """Whether each frame of each note, end to end, is below `part` of the note's fading maximum.

    In logarithms, each note raised above the one before it, so that the maximum of the row so far
    is the note's own.
    """
    start, _, pitch = notes
    note, since = _rows(notes)
    if not len(note):
        return np.zeros(0, bool)
    at = (start[note] + since, pitch[note])
    sound = np.log(np.maximum(frame[at].astype(np.float64), _CERTAIN)) - since * np.log(fade)
    raised = note * (np.ptp(sound) + 1.0)
    highest = np.maximum.accumulate(sound + raised) - raised
    return (sound < highest + np.log(part)) & ~onset[at]


def _first_below(below: np.ndarray, notes: _Spans) -> np.ndarray:
    """The first frame of each note that is below, or its end."""
    start, stop, _ = notes
    note, since = _rows(notes)
    low = np.flatnonzero(below)
    which, first = np.unique(note[low], return_index=True)
    stop = stop.copy()
    stop[which] = start[which] + since[low[first]]
    return stop


def _likeliest_ends(
    below: np.ndarray, offset: np.ndarray, notes: _Spans, weight: float, around: int
) -> np.ndarray:
    """The frame at which each note ends: where frames before it and the offset roll speak for it.

    Frame t is an end at least one frame after the start, at most at the end of the span, and
    `around` frames from the first that is below. Its worth is the number of frames before it that
    are not below, less that of those that are, and `weight` times the logarithm of offset[t].
    """
    start, _, pitch = notes
    if not len(start):
        return start
    guess = _first_below(below, notes)
    note, since = _rows(notes)
    end = start[note] + since + 1  # of a note whose last frame this is
    told = offset[np.minimum(end, len(offset) - 1), pitch[note]].astype(np.float64)
    worth = np.cumsum(np.where(below, -1.0, 1.0)) + weight * np.log(told + _UNHEARD)
    worth[np.abs(end - guess[note]) > around] = -np.inf
    first = np.flatnonzero(since == 0)
    best = np.flatnonzero(worth == np.maximum.reduceat(worth, first)[note])
    which, earliest = np.unique(note[best], return_index=True)
    stop = guess.copy()
    stop[which] = end[best[earliest]]
    return stop


def _velocity(
    velocity: np.ndarray | None,
    onset: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    pitch: np.ndarray,
    at: str,
) -> np.ndarray:
    """Strength 0..1 of each note; without a velocity roll, that of MIDI velocity 64."""
    if velocity is None:
        return np.full(len(start), 0.5)
    velocity = np.clip(np.asarray(velocity, np.float64), 0.0, 1.0)
    if at == "onset":
        return velocity[start, pitch]
    zero = np.zeros((1, onset.shape[1]))
    total = np.concatenate([zero, np.cumsum(velocity * onset, axis=0)])
    number = np.concatenate([zero, np.cumsum(onset, axis=0)])
    return (total[stop, pitch] - total[start, pitch]) / (number[stop, pitch] - number[start, pitch])


# The likeliest path --------------------------------------------------------------------------


_FRAMES_AT_ONCE = 8192  # whose losses are held in float64: bounded memory for any recording
# Activations are kept this far from 0 and 1, where the original's losses are infinite. Activations
# are stored as float16, which rounds what is nearer than 2e-4 to 1.
_CERTAIN = 1e-7


def two_state_path(
    onset: Float[np.ndarray, "T P"], frame: Float[np.ndarray, "T P"], alpha: float = 0.5
) -> Bool[np.ndarray, "T P"]:
    """Whether each pitch is on in each frame, on the path of least loss over the whole recording.

    onset, frame: probabilities. A path pays for every frame: (1 - alpha) times -ln p of being
    as the path says it is (on with p = frame, off with 1 - frame), and alpha times -ln p of what
    happens there: an onset (p = onset) where the path goes from off to on, none (1 - onset) in all
    other frames. Before the first frame every pitch is off. alpha 0 hears frames alone, 1 onsets
    alone. Where two paths are equal, off is taken.

    Magenta's `probs_to_pianoroll_viterbi` (onsets_frames_transcription/infer_util.py). Only the
    difference between the losses of on and off is carried from frame to frame, for all pitches at
    once. Raises ConfigError when alpha is not within 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"viterbi_alpha is {alpha}; expected 0 (frames alone) to 1 (onsets).")
    count, pitches = onset.shape
    was_on_if_off, was_on_if_on = np.zeros((2, count, pitches), bool)
    lead = np.full(pitches, np.inf)  # loss of being on less that of being off, in the frame before
    for first in range(0, count, _FRAMES_AT_ONCE):
        part = slice(first, first + _FRAMES_AT_ONCE)
        begin = alpha * _loss_ratio(onset[part])  # of an onset, less that of none
        sound = (1 - alpha) * _loss_ratio(frame[part])
        leads = np.empty_like(begin)
        for t in range(len(begin)):
            leads[t] = lead
            lead = np.minimum(begin[t], lead) - np.minimum(0, lead) + sound[t]
        was_on_if_off[part], was_on_if_on[part] = leads < 0, leads < begin
    path = np.empty((count, pitches), bool)
    on = lead < 0
    for t in range(count - 1, -1, -1):
        path[t] = on
        on = np.where(on, was_on_if_on[t], was_on_if_off[t])
    return path


def _loss_ratio(probability: np.ndarray) -> np.ndarray:
    """-ln p + ln(1 - p), float64."""
    p = np.clip(np.asarray(probability, np.float64), _CERTAIN, 1 - _CERTAIN)
    return np.log1p(-p) - np.log(p)
