"""Our own weights of CREPE: they load from the package, find a scale, and stay silent in noise."""

from dataclasses import replace

import numpy as np
import pytest

import musicjax
from musicjax.models.crepe import SYSTEM
from musicjax.models.crepe.model import get_config
from musicjax.train.config import parse_overrides

RATE = 16_000
SCALE = (57, 59, 60, 62, 64, 65, 67, 69, 71, 72)  # A3 to C5, a quarter of a second each


@pytest.fixture(scope="module")
def tracker():
    return musicjax.load("crepe.ours")


def scale(harmonics):
    hz = np.repeat([440 * 2 ** ((p - 69) / 12) for p in SCALE], RATE // 4)
    turn = 2 * np.pi * np.cumsum(hz) / RATE
    tone = sum(level * np.sin(n * turn) for n, level in harmonics.items())
    return (0.3 * tone / np.abs(tone).max()).astype(np.float32), hz


@pytest.mark.parametrize(
    "harmonics",
    [
        {1: 1.0},
        {1: 1.0, 2: 0.7, 3: 0.5, 4: 0.3, 5: 0.2},
        {2: 1.0, 3: 0.9, 4: 0.7, 5: 0.6, 6: 0.4},
        {1: 0.2, 2: 1.0, 3: 0.15, 4: 0.1, 5: 0.1, 6: 0.05},
    ],
    ids=["sine", "rich", "no fundamental", "second harmonic leads"],
)
def test_a_scale_is_heard(tracker, harmonics):
    samples, hz = scale(harmonics)
    found = tracker.pitch(samples, RATE)
    frame = np.arange(len(found.f0_hz))
    steady = (frame % 25 > 4) & (frame % 25 < 21)
    cents = 1200 * np.log2(np.maximum(found.f0_hz, 1) / hz[frame * RATE // 100])
    assert found.contour.voiced[steady].mean() > 0.95
    assert np.mean(np.abs(cents[steady]) < 25) > 0.95


def test_silence_and_noise_have_no_pitch(tracker):
    rng = np.random.default_rng(0)
    white = rng.normal(size=3 * RATE)
    brown = np.convolve(white, 0.99 ** np.arange(1000))[: len(white)]
    for noise in (white, brown, np.zeros_like(white), np.full_like(white, 0.1)):
        samples = (0.1 * noise / max(noise.std(), 1.0)).astype(np.float32)
        assert tracker.pitch(samples, RATE).contour.voiced.mean() < 0.05


def test_a_tone_out_of_range_has_no_pitch_and_of_several_it_is_less_sure(tracker):
    time = np.arange(2 * RATE) / RATE
    high = (0.3 * np.sin(2 * np.pi * 3000 * time)).astype(np.float32)
    assert tracker.pitch(high, RATE).contour.voiced.mean() < 0.05

    def sureness(*tones):
        partials = [np.sin(2 * np.pi * f * k * time) / k for f in tones for k in range(1, 9)]
        samples = 0.3 * np.sum(partials, axis=0) / len(tones)
        return np.median(tracker.pitch(samples.astype(np.float32), RATE).confidence)

    assert sureness(220.0) > 0.85
    for chord in ((261.6, 329.6, 392.0), (220.0, 311.1), (220.0, 261.6, 311.1, 370.0)):
        assert sureness(*chord) < 0.7


def test_the_card_tells_what_is_in_the_file(tracker):
    assert tracker.config == get_config("ours")
    assert SYSTEM.cards["ours"].parameters == 1_611_432
    assert SYSTEM.cards["ours"].source.size_bytes < 4_000_000


def test_its_recipe_is_the_command_on_the_card():
    from musicjax.configs.crepe import get_config as recipe

    run = recipe("ours")
    assert run.data.train == ("voices:",) and run.model.form == "halves"
    assert replace(run.model, form="auto", frontend=tracker_frontend()) == get_config("ours")
    fonts = ["--data.weights", "0.7", "0.3", "--data.train", "voices:", "voices:font.sf2"]
    assert parse_overrides(run, fonts).data.train == ("voices:", "voices:font.sf2")


def tracker_frontend():
    return get_config("ours").frontend
