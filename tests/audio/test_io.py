"""Reading, resampling, reading in blocks, and writing."""

import io
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from musicjax.audio import Audio, blocks, load_audio, probe, save_audio
from musicjax.errors import AudioError, OutputError

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def tone(seconds: float, sample_rate: int, channels: int = 1, hz: float = 440.0) -> np.ndarray:
    """(C, N): each channel softer than the one before."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = 0.5 * np.sin(2 * np.pi * hz * time)
    return np.stack([wave / (c + 1) for c in range(channels)]).astype(np.float32)


def pitch_hz(samples: np.ndarray, sample_rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * sample_rate / len(samples))


@pytest.mark.parametrize("ending", ["wav", "flac", "aiff", "ogg", "mp3"])
def test_what_is_written_is_read(tmp_path, ending):
    wave = tone(1.0, 44_100, channels=2)
    path = save_audio(tmp_path / f"tone.{ending}", wave, 44_100)
    audio = load_audio(path, mono=False)
    lossy = ending in ("ogg", "mp3")
    assert audio.sample_rate == 44_100
    assert audio.samples.shape[0] == 2
    assert abs(audio.duration_s - 1.0) < 0.1
    assert audio.samples.dtype == np.float32
    assert abs(pitch_hz(audio.samples[0], 44_100) - 440) < 2
    if not lossy:
        np.testing.assert_allclose(audio.samples, wave, atol=1 / 32768)
    info = probe(path)
    assert (info.sample_rate, info.channels, info.format) == (44_100, 2, ending.upper())
    assert abs(info.duration_s - 1.0) < 0.1


def test_mono_is_the_mean_of_the_channels(tmp_path):
    wave = tone(0.1, 8000, channels=8)
    path = save_audio(tmp_path / "eight.wav", wave, 8000)
    assert probe(path).channels == 8
    np.testing.assert_allclose(load_audio(path).samples, wave.mean(axis=0), atol=1e-4)
    assert load_audio(path, mono=False).samples.shape == (8, 800)


@pytest.mark.parametrize("own_rate", [8000, 22_050, 44_100, 192_000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, own_rate):
    path = save_audio(tmp_path / "tone.wav", tone(0.5, own_rate)[0], own_rate)
    audio = load_audio(path, 16_000)
    assert audio.sample_rate == 16_000
    assert len(audio.samples) == round(len(tone(0.5, own_rate)[0]) * 16_000 / own_rate) == 8000
    assert abs(pitch_hz(audio.samples, 16_000) - 440) < 2.1
    assert abs(np.abs(audio.samples[2000:6000]).max() - 0.5) < 0.01


@pytest.mark.parametrize("block_s", [0.01, 0.25, 0.3, 9.0])
def test_blocks_put_together_are_the_whole(tmp_path, block_s):
    path = save_audio(tmp_path / "tone.flac", tone(1.237, 44_100, channels=2), 44_100)
    whole = load_audio(path, 16_000).samples
    pieces = list(blocks(path, 16_000, block_s))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert {len(p) for p in pieces[:-1]} <= {round(block_s * 16_000)}
    assert all(p.dtype == np.float32 and p.ndim == 1 for p in pieces)
    both = np.concatenate(list(blocks(path, 16_000, block_s, mono=False)), axis=1)
    np.testing.assert_array_equal(both, load_audio(path, 16_000, mono=False).samples)


def test_blocks_hold_a_bounded_part_of_the_file(tmp_path, monkeypatch):
    """Decoding goes on only as the blocks are taken."""
    path = save_audio(tmp_path / "long.wav", tone(60.0, 44_100)[0], 44_100)
    read, original = [], soundfile.SoundFile.read

    def counted(self, frames, **keywords):
        piece = original(self, frames, **keywords)
        read.append(len(piece))
        return piece

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    stream = blocks(path, 16_000, 5.0)
    next(stream)
    assert sum(read) < 15 * 44_100
    stream.close()


def test_file_objects_are_read_and_left_where_they_were(tmp_path):
    path = save_audio(tmp_path / "tone.flac", tone(0.2, 16_000)[0], 16_000)
    file = io.BytesIO(path.read_bytes())
    assert probe(file).format == "FLAC"
    assert file.tell() == 0
    np.testing.assert_array_equal(load_audio(file).samples, load_audio(path).samples)
    with path.open("rb") as opened:
        assert load_audio(opened, 8000).duration_s == pytest.approx(0.2)


def test_strings_are_paths(tmp_path):
    path = save_audio(tmp_path / "a name with spaces, é.wav", tone(0.1, 8000)[0], 8000)
    assert load_audio(str(path)).samples.shape == (800,)


def test_audio_says_what_it_is():
    audio = Audio(np.zeros((2, 16_000), np.float32), 16_000)
    assert audio.duration_s == 1.0
    assert repr(audio) == "Audio(1.00 s, 16000 Hz, 2 channel(s))"


@pytest.fixture
def m4a(tmp_path):
    source = save_audio(tmp_path / "tone.wav", tone(1.0, 44_100, channels=2), 44_100)
    path = tmp_path / "-tone.m4a"  # a name that a careless command line takes for an option
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", source, "-c:a", "aac", f"file:{path}"], check=True
    )
    return path


@needs_ffmpeg
def test_other_formats_come_through_ffmpeg(m4a):
    info = probe(m4a)
    assert (info.sample_rate, info.channels, info.format) == (44_100, 2, "M4A")
    assert abs(info.duration_s - 1.0) < 0.1
    audio = load_audio(m4a, 16_000)
    assert abs(pitch_hz(audio.samples, 16_000) - 440) < 2
    np.testing.assert_array_equal(np.concatenate(list(blocks(m4a, 16_000, 0.3))), audio.samples)
    with m4a.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file, 16_000).samples, audio.samples)


@needs_ffmpeg
def test_leaving_early_leaves_no_ffmpeg_behind(m4a):
    stream = blocks(m4a, 16_000, 0.01)
    next(stream)
    stream.close()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(m4a) not in running


def test_without_ffmpeg_a_sentence_says_so(tmp_path, monkeypatch):
    path = tmp_path / "song.m4a"
    path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(range(256)))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(AudioError, match="ffmpeg, which reads other formats, is not installed"):
        load_audio(path)


@needs_ffmpeg
def test_a_video_without_sound(tmp_path):
    path = tmp_path / "silent.mp4"
    command = ["-f", "lavfi", "-i", "color=size=16x16:duration=0.2", "-c:v", "mpeg4"]
    subprocess.run(["ffmpeg", "-v", "error", *command, path], check=True)
    with pytest.raises(AudioError, match="no audio track"):
        load_audio(path)


# --- writing ------------------------------------------------------------------------------------


def test_writing_replaces_whole_files(tmp_path):
    path = save_audio(tmp_path / "tone.wav", tone(0.1, 8000)[0], 8000)
    save_audio(path, tone(0.2, 8000)[0], 8000)
    assert probe(path).duration_s == pytest.approx(0.2)
    assert [p.name for p in tmp_path.iterdir()] == ["tone.wav"]


def test_loud_samples_are_clipped_and_not_wrapped(tmp_path):
    path = save_audio(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32), 8000)
    np.testing.assert_allclose(load_audio(path).samples, [1, -1], atol=1e-4)


def test_what_cannot_be_written(tmp_path):
    wave = tone(0.1, 8000)[0]
    with pytest.raises(OutputError, match=r"ends in '\.xyz'.*\.wav, \.flac"):
        save_audio(tmp_path / "tone.xyz", wave, 8000)
    with pytest.raises(OutputError, match="no folder"):
        save_audio(tmp_path / "missing" / "tone.wav", wave, 8000)
    with pytest.raises(OutputError, match="write a WAV file"):
        save_audio(tmp_path / "many.mp3", tone(0.1, 44_100, channels=6), 44_100)
    with pytest.raises(AudioError, match="no samples"):
        save_audio(tmp_path / "tone.wav", wave[:0], 8000)
    assert not list(tmp_path.iterdir())
