"""Whatever is handed in: it works, or a sentence says what to do, and nothing is left half done."""

import io
import os
import signal

import numpy as np
import pytest
import soundfile

import musicjax
from musicjax.cli import main
from musicjax.errors import AudioError
from musicjax.notes import Notes, midi_bytes
from musicjax.tasks import transcribe as task

RATE = 16000


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def transcriber(tiny_weights):
    return musicjax.load(tiny_weights, window_s=5.0, batch_size=10)


@pytest.fixture
def run(transcriber, capfd, monkeypatch):
    """Transcribe files with the tiny model, loaded once: (exit code, stderr)."""
    monkeypatch.setattr("musicjax.tasks.loading.load", lambda *_, **__: transcriber)

    def call(*args):
        code = main(["transcribe", "--model", "onsets_frames.small", *map(str, args)])
        return code, capfd.readouterr().err

    return call


def noise(seconds, rate=RATE, channels=1, level=0.1):
    samples = np.random.default_rng(0).normal(0, level, (round(seconds * rate), channels))
    return samples.astype(np.float32)


def missing(path):
    return "does not exist"


def directory(path):
    path.mkdir()
    return "is a folder"


def empty(path):
    path.write_bytes(b"")
    return "is empty"


def text(path):
    path.write_text("This is a letter, not a song.\n")
    return "is a text file"


def random_bytes(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return "bad.wav"


def truncated(path):
    soundfile.write(path, noise(20), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:200_000])
    return "damaged or cut short"


def no_samples(path):
    soundfile.write(path, noise(0), RATE)
    return "no samples"


def nan(path):
    samples = noise(1)
    samples[8000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return "0.500 s"


def infinite(path):
    samples = noise(1)
    samples[80] = np.inf
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return "NaN or infinite"


def midi(path):
    path.write_bytes(midi_bytes(Notes.from_arrays([0.0], [1.0], [60])))
    return "is a MIDI file"


UNREADABLE = [missing, directory, empty, text, random_bytes, truncated, no_samples, nan, infinite,
              midi]  # fmt: skip


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda make: make.__name__)
def test_what_cannot_be_heard_is_told_and_nothing_is_written(tmp_path, run, make):
    words = make(tmp_path / "bad.wav")
    code, said = run("bad.wav", "-o", "out.mid")
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.mid").exists()


HEARD = {
    "10 ms": (noise(0.01), RATE),
    "one sample": (noise(1 / RATE), RATE),
    "8 kHz": (noise(1, 8000), 8000),
    "192 kHz": (noise(1, 192_000), 192_000),
    "8 channels": (noise(1, channels=8), RATE),
    "silence": (np.zeros((RATE, 1), np.float32), RATE),
    "clipping noise": (np.sign(noise(1)), RATE),
    "far too loud": (noise(1, level=1000.0), RATE),
}


@pytest.mark.parametrize("name", HEARD)
def test_strange_audio_is_heard(tmp_path, run, name):
    samples, rate = HEARD[name]
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    code, said = run("a.wav", "-o", "a.mid")
    assert (code, said) == (0, "")
    assert (tmp_path / "a.mid").read_bytes().startswith(b"MThd")


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.wav"
    soundfile.write(path, noise(0.5), RATE)
    return path


@pytest.mark.parametrize("output", ["gone/a.mid", "file/a.mid", "file/folder/", "a.docx", "full"])
def test_an_unwritable_output_is_refused_before_the_work(
    tmp_path, good, output, monkeypatch, capfd
):
    def too_late(*args, **kwargs):
        raise AssertionError("the model was loaded first")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("musicjax.tasks.loading.load", too_late)
    if output == "full":
        monkeypatch.setattr("tempfile.TemporaryFile", full)
    (tmp_path / "file").write_text("")
    assert main(["transcribe", str(good), "-o", output]) == 2
    said = capfd.readouterr().err
    assert any(words in said for words in ("Cannot write", "cannot make", "no known ending"))


def test_existing_output_is_replaced_whole_or_left_alone(tmp_path, run, good, monkeypatch):
    output = tmp_path / "a.mid"
    output.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, said = run(good, "-o", output)
    assert code == 2
    assert "No space left" in said
    assert output.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mid", "good.wav"]
    assert run(good, "-o", output)[0] == 0
    assert output.read_bytes().startswith(b"MThd")


def test_existing_output_is_kept_when_asked(tmp_path, run, good):
    (tmp_path / "good.mid").write_bytes(b"old")
    code, said = run(good, "--skip-existing")
    assert code == 0
    assert "1 of 1" in said
    assert (tmp_path / "good.mid").read_bytes() == b"old"


def test_an_input_is_not_overwritten(tmp_path, run):
    (tmp_path / "a.mid").write_bytes(b"precious")
    code, said = run("a.mid", "-o", "a.mid")
    assert code == 2
    assert "also an input" in said
    assert (tmp_path / "a.mid").read_bytes() == b"precious"


def test_an_unknown_model_lists_near_ones(good, capfd):
    assert main(["transcribe", str(good), "--model", "onset_frames.smal"]) == 2
    assert "did you mean onsets_frames" in capfd.readouterr().err


def test_one_bad_file_among_a_hundred(tmp_path, run):
    for i in range(100):
        soundfile.write(tmp_path / f"{i:03}.wav", noise(0.01), RATE)
    (tmp_path / "050.wav").write_text("not sound")
    code, said = run(*sorted(tmp_path.glob("*.wav")), "-o", "out")
    assert code == 1
    assert "050.wav is a text file" in said
    assert "1 of 100 recordings failed" in said
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{i:03}.mid" for i in range(100)} - {"050.mid"}


@pytest.mark.parametrize("stage", ["decoding", "drawing", "collecting"])
def test_whatever_goes_wrong_with_one_file_the_others_are_done(
    tmp_path, run, transcriber, monkeypatch, stage
):
    names = [f"{i:02}" for i in range(12)]
    for name in names:
        soundfile.write(tmp_path / f"{name}.wav", noise(0.01), RATE)
    calls = []

    def fails_once(function):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == 4:
                raise IndexError("index 7 is out of bounds")
            return function(*args, **kwargs)

        return call

    where, name = {
        "decoding": (transcriber, "_decode"),
        "drawing": (task.Transcription, "write"),
        "collecting": (task._Collected, "done"),
    }[stage]
    monkeypatch.setattr(where, name, fails_once(getattr(where, name)))
    code, said = run(*(f"{name}.wav" for name in names), "-o", "out")
    assert code == 1
    assert "03.wav: IndexError: index 7 is out of bounds" in said
    assert "1 of 12 recordings failed" in said
    assert {p.stem for p in (tmp_path / "out").iterdir()} == {*names} - {"03"}


def test_ctrl_c_keeps_what_is_done(tmp_path, run, monkeypatch):
    for i in range(30):
        soundfile.write(tmp_path / f"{i:02}.wav", noise(0.01), RATE)
    written = []
    write = task.Transcription.write

    def interrupted(self, path):
        if len(written) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        written.append(path)
        return write(self, path)

    monkeypatch.setattr(task.Transcription, "write", interrupted)
    # A shell that starts the tests in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, said = run(*sorted(tmp_path.glob("*.wav")), "-o", "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "what was done is kept" in said
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [f"{i:02}.mid" for i in range(12)]


def test_a_file_object_in_text_mode_is_told(transcriber):
    with pytest.raises(AudioError, match="text mode"):
        transcriber.transcribe(io.StringIO("no bytes"))
