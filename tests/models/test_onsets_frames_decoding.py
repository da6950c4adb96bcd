"""Onsets and Frames: decoding by thresholds, by plain loops, and by the likeliest path."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from musicjax.errors import ConfigError
from musicjax.models.onsets_frames import decoding
from musicjax.models.onsets_frames.decoding import decode, two_state_path
from musicjax.models.onsets_frames.labels import targets
from musicjax.models.onsets_frames.model import get_config
from musicjax.notes import Notes

PORT = get_config("tiny")
FRAME_S = 512 / 16000


def plain_decode(onset, frame, heard_rolls, split, fall=0.0, worth=0.0):
    """The rules written as loops: (start, stop, pitch, strength) in order."""
    velocity, probability, offset = (heard_rolls[n] for n in ("velocity", "frame", "offset"))
    notes, fade = [], 0.5 ** (FRAME_S / 0.54)
    rise = onset & ~np.pad(onset, ((1, 0), (0, 0)))[:-1]
    for start, pitch in zip(*np.nonzero(rise), strict=True):
        stop, highest, low = start, 0.0, []
        while stop < len(onset) and (onset[stop, pitch] or frame[stop, pitch]):
            if split and stop > start and rise[stop, pitch]:
                break
            highest = max(fade * highest, probability[stop, pitch])
            low.append(not onset[stop, pitch] and probability[stop, pitch] < fall * highest)
            stop += 1
        guess = start + low.index(True) if True in low else stop
        if worth:
            points, best = 0.0, -np.inf
            for end in range(start + 1, stop + 1):
                points += -1 if low[end - 1 - start] else 1
                told = offset[min(end, len(offset) - 1), pitch]
                found = points + worth * np.log(told + 0.01)
                if abs(end - guess) <= 16 and found > best + 1e-9:
                    best, stop = found, end
        else:
            stop = guess
        struck = onset[start:stop, pitch]
        notes.append((start, stop, pitch, velocity[start:stop, pitch][struck].mean()))
    return notes


@pytest.mark.parametrize(
    ("split", "fall", "worth"),
    [(False, 0.0, 0.0), (True, 0.0, 0.0), (True, 0.5, 0.0), (True, 0.5, 10.0), (False, 0.6, 2.0)],
)
def test_decoding_by_plain_loops(split, fall, worth):
    rng = np.random.default_rng(0)
    names = ("onset", "frame", "velocity", "offset")
    activations = {name: rng.random((200, 88)) for name in names}
    activations["onset"] **= 4
    threshold = 0.3 if not worth else 0.05  # longer notes
    notes = decode(
        activations,
        PORT,
        split_reonsets=split,
        frame_threshold=threshold,
        frame_fall=fall,
        offset_worth=worth,
    )
    on, sounds = activations["onset"] > 0.5, activations["frame"] > threshold
    expected = plain_decode(on, sounds, activations, split, fall, worth)
    start, stop, pitch, strength = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(notes.onset_s, start * FRAME_S)
    np.testing.assert_allclose(notes.offset_s, stop * FRAME_S)
    np.testing.assert_array_equal(notes.pitch, pitch + 21)
    np.testing.assert_array_equal(
        notes.velocity, np.clip(strength * 127 + 1e-9, 1, 127).astype(int)
    )


def test_decoding_options():
    roll = np.zeros((10, 88), np.float32)
    onset, frame, offset = roll.copy(), roll.copy(), roll.copy()
    onset[1:3, 40], frame[1:9, 40], offset[5, 40] = 0.9, 0.8, 0.9
    onset[4, 50] = 0.9
    velocity = np.full_like(roll, 0.25)
    velocity[2, 40] = 0.75
    heard = {"onset": onset, "frame": frame, "offset": offset, "velocity": velocity}

    def ends(**options):
        return (decode(heard, PORT, **options).offset_s / FRAME_S).round().tolist()

    assert ends() == [9, 5]
    assert ends(offset_threshold=0.5) == [5, 5]
    assert ends(min_duration_s=2 * FRAME_S) == [9]
    frame[6:9, 40] = 0.35
    assert ends(frame_fall=0.5) == [6, 5]
    assert ends(frame_fall=0.4) == ends() == [6, 5]
    assert ends(frame_fall=0.4, frame_threshold=0.1) == [9, 5]
    # The offset in frame 5 outweighs the frame of sound after it, unless it is worth too little.
    assert ends(frame_fall=0.5, offset_worth=10.0) == [5, 5]
    assert ends(frame_fall=0.5, offset_worth=0.1) == [6, 5]
    frame[6:9, 40] = 0.8
    assert decode(heard, PORT).velocity.tolist() == [63, 31]
    assert decode(heard, PORT, velocity_at="onset").velocity.tolist() == [31, 31]
    magenta = replace(PORT, velocity_scale=80.0, velocity_bias=10.0)
    assert decode(heard, magenta, velocity_at="onset").velocity.tolist() == [30, 30]
    assert len(decode({"onset": roll, "frame": frame}, PORT)) == 0


def test_labels_decode_to_their_notes():
    notes = Notes.from_arrays([0.5, 0.75, 2.0], [1.2, 1.4, 2.6], [60, 64, 67], [30, 80, 127])
    labels = targets(notes, 0.0, 100 * 512, PORT)
    heard = decode({name: roll.astype(np.float32) for name, roll in labels.items()}, PORT)
    np.testing.assert_array_equal(heard.pitch, notes.pitch)
    np.testing.assert_allclose(heard.onset_s, notes.onset_s, atol=FRAME_S / 2)
    np.testing.assert_allclose(heard.offset_s, notes.offset_s, atol=FRAME_S / 2)
    np.testing.assert_allclose(heard.velocity, notes.velocity, atol=1)


def test_decoding_starts_from_the_configs_thresholds():
    """They belong to the weights; the call may say otherwise."""
    onset = np.zeros((8, 88), np.float32)
    onset[1, 3] = 0.45
    heard = {"onset": onset, "frame": np.zeros_like(onset)}
    assert len(decode(heard, PORT)) == 0
    assert len(decode(heard, replace(PORT, onset_threshold=0.4))) == 1
    assert len(decode(heard, replace(PORT, onset_threshold=0.4), onset_threshold=0.5)) == 0


# The likeliest path --------------------------------------------------------------------------


def path_loss(path, onset, frame, alpha):
    """What one pitch's path costs, as the definition says it."""
    total, before = 0.0, False
    for on, p_onset, p_frame in zip(path, onset, frame, strict=True):
        happened = p_onset if on and not before else 1 - p_onset
        is_so = p_frame if on else 1 - p_frame
        total -= alpha * np.log(happened) + (1 - alpha) * np.log(is_so)
        before = on
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_no_path_is_likelier(alpha):
    """Against all 2^9 paths of each of twelve pitches."""
    rng = np.random.default_rng(int(10 * alpha))
    onset, frame = rng.random((2, 9, 12))
    found = two_state_path(onset, frame, alpha)
    for pitch in range(12):
        heard = onset[:, pitch], frame[:, pitch], alpha
        losses = [path_loss(path, *heard) for path in product((False, True), repeat=9)]
        np.testing.assert_allclose(path_loss(found[:, pitch], *heard), min(losses), rtol=1e-12)


def test_the_path_of_magentas_own_test():
    """The case in infer_util_test.py: quiet frames before a sure onset stay off."""
    frame = np.array([[0.2, 0.1], [0.5, 0.1], [0.5, 0.1], [0.8, 0.1]])
    onset = np.array([[0.1, 0.1], [0.1, 0.1], [0.9, 0.1], [0.1, 0.1]])
    path = two_state_path(onset, frame)
    assert path.tolist() == [[False, False], [False, False], [True, False], [True, False]]


def test_the_path_does_not_depend_on_how_much_is_held_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    onset, frame = rng.random((2, 50, 3)).astype(np.float32)
    whole = two_state_path(onset, frame)
    monkeypatch.setattr(decoding, "_FRAMES_AT_ONCE", 7)
    np.testing.assert_array_equal(two_state_path(onset, frame), whole)


def test_certain_activations_have_a_path():
    """0 and 1 are what float16 makes of a very sure network."""
    onset, frame = np.zeros((2, 6, 2), np.float16)
    onset[1, 0] = frame[1:4, 0] = 1
    assert two_state_path(onset, frame)[:, 0].tolist() == [False, True, True, True, False, False]
    assert not two_state_path(onset, frame)[:, 1].any()
    assert two_state_path(onset[:0], frame[:0]).shape == (0, 2)


def test_notes_along_the_path():
    """A weak frame does not cut a note, and the velocity is that of its first frame."""
    onset, frame, velocity = np.full((3, 12, 88), 0.02)
    onset[2, 40], frame[2:9, 40], velocity[2, 40] = 0.9, 0.9, 0.75
    frame[5, 40] = 0.3
    onset[7, 40] = 0.45
    heard = {"onset": onset, "frame": frame, "velocity": velocity}
    assert len(decode(heard, PORT)) == 1 and decode(heard, PORT).offset_s[0] < 6 * FRAME_S
    for at in ("mean", "onset"):
        notes = decode(heard, PORT, viterbi_alpha=0.5, velocity_at=at)
        assert (notes.onset_s / FRAME_S).tolist() == [2] and notes.pitch.tolist() == [61]
        assert (notes.offset_s / FRAME_S).tolist() == [9]
        assert notes.velocity.tolist() == [95]
    with pytest.raises(ConfigError, match="viterbi_alpha is 2"):
        decode(heard, PORT, viterbi_alpha=2)


@pytest.mark.parametrize(
    "option",
    [
        {"onset_threshold": 7.0},
        {"frame_fall": 2.0},
        {"frame_threshold": -0.1},
        {"offset_threshold": float("nan")},
        {"min_duration_s": -5.0},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_work_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}; expected 0"):
        decode({}, PORT, **option)
