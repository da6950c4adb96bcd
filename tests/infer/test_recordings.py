"""What may be handed in as a recording, and how failures are kept apart."""

import io

import numpy as np
import pytest
import soundfile

from musicjax.audio import Audio, load_audio
from musicjax.errors import AudioError
from musicjax.infer import Runner, as_recording, hear, layout, sample_blocks

RATE = 44100


def tone(seconds=1.0, channels=1):
    time_s = np.arange(round(seconds * RATE)) / RATE
    samples = np.stack([0.3 * np.sin(2 * np.pi * 440 * (c + 1) * time_s) for c in range(channels)])
    return samples.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_arrays_files_and_file_objects_give_the_same_samples(tmp_path, channels):
    samples = tone(channels=channels)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples.T, RATE, subtype="FLOAT")
    expected = load_audio(path, 16000).samples
    for source in (path, str(path), io.BytesIO(path.read_bytes()), Audio(samples, RATE),
                   (samples, RATE)):  # fmt: skip
        found = np.concatenate(list(sample_blocks(as_recording(source), 16000)))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_arrays_longer_than_a_block_are_resampled_without_seams(monkeypatch):
    monkeypatch.setattr("musicjax.infer.recordings.BLOCK_S", 0.3)
    samples = tone()[0]
    pieces = list(sample_blocks(Audio(samples, RATE), 16000))
    assert len(pieces) == 4
    monkeypatch.setattr("musicjax.infer.recordings.BLOCK_S", 60.0)
    (whole,) = sample_blocks(Audio(samples, RATE), 16000)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_integers_become_floats():
    found = as_recording(np.array([0, 16384, -32768], np.int16), 8000)
    np.testing.assert_array_equal(found.samples, np.array([0, 0.5, -1], np.float32))


def test_an_array_needs_its_rate():
    with pytest.raises(AudioError, match="sample_rate="):
        as_recording(np.zeros(10, np.float32))


def test_what_is_not_audio_is_told():
    with pytest.raises(AudioError, match="transpose"):
        as_recording(np.zeros((1000, 2), np.float32), 8000)
    with pytest.raises(AudioError, match="NaN"):
        as_recording(np.array([0, np.nan], np.float32), 8000)
    with pytest.raises(AudioError, match="no samples"):
        as_recording(np.zeros(0, np.float32), 8000)


@pytest.fixture(scope="module")
def runner(tiny_model):
    model, config = tiny_model
    rate, hop = config.frontend.sample_rate, config.frontend.hop_length
    return Runner(model, layout(rate, hop, context_s=1.0, window_s=4.0, batch_size=2))


def test_failures_come_in_their_turn_and_stop_nobody(runner, tmp_path):
    good = Audio(tone(0.5)[0], RATE)
    bad = tmp_path / "bad.wav"
    bad.write_text("not sound at all")
    told = []
    given = [bad, good, bad, bad, good, tmp_path / "gone.wav"]
    heard = list(hear(runner, given, 16000, lambda i, s: told.append((i, s))))
    assert [h.index for h in heard] == list(range(6))
    assert [h.error is None for h in heard] == [False, True, False, False, True, False]
    assert told == [(1, 0.5), (4, 0.5)]
    assert heard[1].duration_s == 0.5


def test_a_recording_that_breaks_off_keeps_nothing(runner, tmp_path):
    path = tmp_path / "cut.flac"
    samples = np.random.default_rng(0).normal(0, 0.1, RATE * 20)
    soundfile.write(path, samples, RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    broken, good = hear(runner, [path, Audio(tone(0.5)[0], RATE)], 16000)
    assert isinstance(broken.error, AudioError)
    assert not broken.activations
    assert good.error is None
