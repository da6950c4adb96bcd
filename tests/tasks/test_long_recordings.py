"""Recordings of many hours: the notes of the whole, in memory that hardly grows."""

import tracemalloc

import numpy as np
import pytest

import musicjax
from musicjax.errors import DataError
from musicjax.notes.pieces import onset_sureness
from musicjax.registry import find_system
from musicjax.tasks import transcribe as task

RATE = 16000
ROLLS = {
    "onsets_frames": ("onset", "frame", "offset", "velocity"),
    "kong2021": ("onset", "offset", "frame", "velocity", "pedal_frame", "pedal_offset"),
}


def music(system, count, seed=0, loud=0.9):
    """Made-up activations in which voices of all lengths begin, sound and end."""
    rng = np.random.default_rng(seed)
    if system == "piano_ar":
        walk = rng.normal(size=(count, 88, 5)) + 3 * (rng.random((count, 88, 5)) < 0.02)
        walk[..., 0] += 2.0
        state = np.exp(walk) / np.exp(walk).sum(-1, keepdims=True)
        velocity = rng.random((count, 88))
        return {"state": state.astype(np.float16), "velocity": velocity.astype(np.float16)}
    found = {name: rng.random((count, 88)).astype(np.float16) * 0.3 for name in ROLLS[system]}
    for name in ("pedal_frame", "pedal_offset"):
        if name in found:
            wave = np.convolve(rng.normal(size=count + 40), np.ones(41) / 10, "valid")
            found[name] = (1 / (1 + np.exp(-wave))).astype(np.float16)[:, None]
    for _ in range(count // 6):
        start, key = rng.integers(count), rng.integers(88)
        length = int(rng.choice([2, 5, 20, 60, 900]))
        found["onset"][start : start + 3, key] = rng.uniform(
            0.3, 1.0, len(found["onset"][start : start + 3])
        )
        found["frame"][start : start + length, key] = loud
        found["offset"][start + length : start + length + 2, key] = 0.8
    return found


@pytest.mark.parametrize(
    ("system", "options"),
    [
        ("onsets_frames", {}),
        ("onsets_frames", {"min_duration_s": 0.15, "offset_threshold": 0.5}),
        ("onsets_frames", {"split_reonsets": True, "velocity_at": "onset"}),
        ("onsets_frames", {"frame_threshold": 0.2, "frame_fall": 0.5, "offset_worth": 10.0}),
        ("kong2021", {}),
        ("kong2021", {"pedal": False, "onset_threshold": 0.4}),
        ("piano_ar", {}),
        ("piano_ar", {"min_duration_s": 0.1}),
    ],
)
def test_notes_of_a_long_recording_are_those_of_the_whole(system, options):
    system = find_system(system)
    config = system.resolve("config")("tiny")
    heard = music(system.name, 4000)
    whole = system.resolve("decode")(heard, config, **options)
    assert len(whole) > 100
    for piece in (150, 1100):
        decoder = system.resolve("decoder")(config, **options)
        decoder.piece = piece
        for begin in range(0, 4000, 70):
            decoder.add({name: roll[begin : begin + 70] for name, roll in heard.items()})
        notes = decoder.done()
        assert len(notes) == len(whole)
        np.testing.assert_allclose(notes.onset_s, whole.onset_s, rtol=0, atol=1e-9)
        np.testing.assert_allclose(notes.offset_s, whole.offset_s, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(notes.pitch, whole.pitch)
        np.testing.assert_array_equal(notes.velocity, whole.velocity)
        assert notes.pedal == whole.pedal
        frames_per_s = config.frontend.sample_rate / config.frontend.hop_length
        sure = onset_sureness(heard, whole, frames_per_s)
        if sure is None:
            assert decoder.confidence is None
        else:
            assert decoder.confidence == pytest.approx(sure.mean())


def test_the_likeliest_path_needs_all_frames():
    system = find_system("onsets_frames")
    assert system.resolve("decoder")(system.resolve("config")("tiny"), viterbi_alpha=0.5) is None


@pytest.mark.parametrize(("system", "frames_per_s"), [("onsets_frames", 31.25), ("kong2021", 100)])
def test_a_day_of_activations_is_not_kept(system, frames_per_s):
    """Growth from a quarter to three quarters of an hour of made-up music, counted for 20 hours."""
    find = find_system(system).resolve
    minutes = round(300 * frames_per_s)
    heard = music(system, minutes)
    taken = {}
    for hours in (0.25, 0.75):
        tracemalloc.start()
        decoder = find("decoder")(find("config")("tiny"))
        for _ in range(round(12 * hours)):
            for part in np.array_split(np.arange(minutes), 10):
                decoder.add({name: roll[part] for name, roll in heard.items()})
        assert len(decoder.done()) > 1000
        taken[hours] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken[0.25] + 40 * max(taken[0.75] - taken[0.25], 0) < 5e8


def test_a_long_recording_keeps_its_notes_alone(tiny_weights, monkeypatch):
    model = musicjax.load(tiny_weights, window_s=6.0)
    samples = np.random.default_rng(0).normal(0, 0.1, 20 * RATE).astype(np.float32)
    heard = model.activations(samples, RATE)
    low = {f"{name}_threshold": float(np.median(heard[name])) for name in ("onset", "frame")}
    whole = model.transcribe(samples, RATE, **low)
    monkeypatch.setattr(task, "KEPT_S", 5.0)
    long = model.transcribe(samples, RATE, **low)
    assert len(long.notes) == len(whole.notes) > 100
    np.testing.assert_allclose(long.notes.onset_s, whole.notes.onset_s, atol=1e-9)
    np.testing.assert_array_equal(long.notes.velocity, whole.notes.velocity)
    assert long.confidence == pytest.approx(whole.confidence)
    assert (long.duration_s, long.doubt) == (whole.duration_s, whole.doubt)
    for ask in (lambda a: a["onset"], lambda a: a.get("onset"), lambda a: "onset" in a,
                lambda a: a.items(), lambda a: a.keys(), lambda a: a.values()):  # fmt: skip
        with pytest.raises(DataError, match=r"only the notes are kept; Transcriber\.activations"):
            ask(long.activations)
    np.testing.assert_array_equal(model.activations(samples, RATE)["onset"], heard["onset"])
    short = model.transcribe(samples[: 4 * RATE], RATE, **low)
    assert short.activations["onset"].shape == (125, 88)
