"""Every wrong thing a person hands over as audio gets a sentence, from the file and in blocks."""

import io
import shutil

import numpy as np
import pytest
import soundfile

from musicjax.audio import blocks, check_samples, load_audio, probe, save_audio
from musicjax.errors import AudioError


def noise(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def missing(folder):
    return folder / "missing.wav"


def directory(folder):
    return folder


def empty(folder):
    path = folder / "empty.wav"
    path.write_bytes(b"")
    return path


def text(folder):
    path = folder / "words.wav"
    path.write_text("These are words, not a recording.\n" * 30)
    return path


def short_text(folder):
    path = folder / "word.mp3"
    path.write_text("é")
    return path


def playlist(folder):
    path = folder / "list.mp3"
    path.write_text("#EXTM3U\n#EXTINF:10,\n/etc/hostname\n")
    return path


def midi(folder):
    path = folder / "song.wav"
    path.write_bytes(
        b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60MTrk\x00\x00\x00\x04\x00\xff\x2f\x00"
    )
    return path


def garbage(folder):
    path = folder / "noise.flac"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def truncated(folder):
    whole = save_audio(folder / "whole.flac", noise(80_000), 16_000)
    path = folder / "cut.flac"
    path.write_bytes(whole.read_bytes()[:60_000])
    return path


def no_samples(folder):
    path = folder / "nothing.wav"
    soundfile.write(path, np.zeros(0, np.float32), 16_000)
    return path


def not_a_number(folder):
    path = folder / "nan.wav"
    wave = noise(16_000)
    wave[4000] = np.nan
    soundfile.write(path, wave, 16_000, subtype="FLOAT")
    return path


def infinite(folder):
    path = folder / "inf.wav"
    wave = noise(16_000)
    wave[8000:8010] = np.inf
    soundfile.write(path, wave, 16_000, subtype="FLOAT")
    return path


BAD = {
    missing: r"missing\.wav does not exist; check the path",
    directory: "is a folder; name an audio file inside it",
    empty: r"empty\.wav is empty \(0 bytes\)",
    text: r"words\.wav is a text file",
    short_text: r"word\.mp3 is a text file",
    playlist: r"list\.mp3 is a text file",
    midi: "is a MIDI file, which holds notes and no sound",
    truncated: r"damaged or cut short: its header promises 5\.00 s but only [12]\.\d\d s",
    no_samples: r"nothing\.wav holds no samples",
    not_a_number: r"1 sample\(s\) that are NaN or infinite, the first at 0\.250 s",
    infinite: r"10 sample\(s\) that are NaN or infinite, the first at 0\.500 s",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_file(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(AudioError, match=BAD[make]) as raised:
        load_audio(path)
    assert str(path) in str(raised.value)
    with pytest.raises(AudioError, match=BAD[make]):
        list(blocks(path, 16_000))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_garbage(tmp_path):
    with pytest.raises(AudioError, match="not audio that can be decoded"):
        load_audio(garbage(tmp_path))


@pytest.mark.parametrize("ending", ["wav", "aiff", "rf64", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("as_object", [False, True])
def test_half_a_file_is_told(tmp_path, capfd, ending, as_object):
    kinds = {"rf64": {"format": "RF64"}, "opus": {"format": "OGG", "subtype": "OPUS"}}
    path = tmp_path / f"whole.{ending}"
    soundfile.write(path, noise(80_000), 16_000, **kinds.get(ending, {}))
    assert len(load_audio(path).samples) == 80_000
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    why = "the end of its stream is missing" if ending in ("ogg", "opus") else "only 50 % of what"
    with pytest.raises(AudioError, match=f"cut short: {why}"):
        load_audio(io.BytesIO(cut.read_bytes()) if as_object else cut)
    assert capfd.readouterr().err == ""  # of the MP3 decoder, which would warn by itself


def test_a_length_that_the_writer_could_not_know_is_no_promise(tmp_path):
    whole = save_audio(tmp_path / "whole.wav", noise(16_000), 16_000).read_bytes()
    place = whole.index(b"data") + 4
    for size in (0x7FFF_FFFF, 0xFFFF_FFFF):  # of arecord and ffmpeg on a pipe
        path = tmp_path / f"{size}.wav"
        path.write_bytes(whole[:place] + size.to_bytes(4, "little") + whole[place + 4 :])
        assert len(load_audio(path).samples) == 16_000


def test_an_mp3_without_a_header_of_its_length_promises_nothing(tmp_path):
    whole = save_audio(tmp_path / "whole.mp3", noise(80_000), 16_000).read_bytes()
    path = tmp_path / "plain.mp3"
    path.write_bytes(whole.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))[:10_000])
    assert 0 < probe(path).duration_s < 5


def test_trouble_after_the_first_block_is_told_where_it_is(tmp_path):
    stream = blocks(not_a_number(tmp_path), 16_000, block_s=0.2)
    assert len(next(stream)) == 3200
    with pytest.raises(AudioError, match="NaN"):
        next(stream)


def test_bad_file_objects(tmp_path):
    with pytest.raises(AudioError, match="the audio file object is a MIDI file"):
        load_audio(io.BytesIO(midi(tmp_path).read_bytes()))
    with pytest.raises(AudioError, match="is empty"):
        probe(io.BytesIO())
    with text(tmp_path).open() as file, pytest.raises(AudioError, match="binary mode"):
        load_audio(file)


def test_ten_milliseconds_are_audio(tmp_path):
    path = save_audio(tmp_path / "click.wav", noise(441), 44_100)
    assert load_audio(path, 16_000).samples.shape == (160,)
    assert [len(b) for b in blocks(path, 16_000)] == [160]


def test_too_short_for_a_single_sample_at_the_new_rate(tmp_path):
    path = save_audio(tmp_path / "one.wav", noise(1), 192_000)
    with pytest.raises(AudioError, match="no samples"):
        load_audio(path, 8000)


def test_bad_rates(tmp_path):
    path = save_audio(tmp_path / "click.wav", noise(441), 44_100)
    with pytest.raises(AudioError, match="sample_rate is 0"):
        load_audio(path, 0)
    with pytest.raises(AudioError, match="block_s is 0"):
        list(blocks(path, 16_000, 0.0))


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.zeros((2, 3, 100), np.float32), r"shape \(2, 3, 100\)"),
        (np.zeros((44_100, 2), np.float32), "44100 channels.*transpose"),
        (np.zeros(100, np.int16), "int16.*32768"),
        (np.zeros(0, np.float32), "no samples"),
        (np.array([0.0, np.nan, np.inf]), r"2 sample\(s\)"),
    ],
)
def test_bad_arrays(samples, sentence):
    with pytest.raises(AudioError, match=sentence):
        check_samples(samples, 16_000)
    with pytest.raises(AudioError, match="sample rate 0"):
        check_samples(np.zeros(10, np.float32), 0)


def test_good_arrays():
    check_samples(noise(160), 16_000)
    check_samples(np.zeros((2, 160)), 44_100)  # silence is audio
