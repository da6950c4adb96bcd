"""`musicjax listen` as a person runs it: real pipes, Ctrl-C, files that are kept, sentences."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from mido.ports import EchoPort
from rich.console import Console

import musicjax
from musicjax.cli import main
from musicjax.errors import ConfigError, ModelNotFoundError, WeightsError
from musicjax.hub.availability import Availability
from musicjax.infer.stream import NoteOn, PitchFrame, Streamer
from musicjax.notes import read_csv, read_midi
from musicjax.notes.contour import read_contour
from musicjax.tasks import live
from musicjax.terminal import live as view

TONES = Path(__file__).with_name("tones.py")
_spec = importlib.util.spec_from_file_location("tones", TONES)
tones = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tones)


@pytest.fixture(scope="module")
def streamers():
    return {pitch: Streamer(tones.Tones(pitch=pitch), bad_samples="silence") for pitch in (0, 1)}


@pytest.fixture(autouse=True)
def tones_listen(streamers, tmp_path, monkeypatch):
    """Tones are what is heard by default, in an empty folder."""

    def load_streamer(model=None, *, pitch=False, **_):
        found = streamers[pitch or model == "pitch"]
        found.reset()
        return found

    monkeypatch.setattr(live, "load_streamer", load_streamer)
    monkeypatch.setattr(live, "resolve", lambda _, pitch: ("pitch" if pitch else "tones", pitch))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "song.wav", tones.melody([69, 72], 0.2), tones.RATE)
    return "song.wav"


def test_a_pipe_at_real_speed_and_ctrl_c(root, tmp_path):
    """Lines come while it sounds, and Ctrl-C in the middle of a note leaves whole files."""
    command = [sys.executable, TONES, "--stdin", "--rate", "24000", "--json", "-o", "take.mid"]
    command += ["--buffer", "5"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    sound = np.concatenate([tones.melody([60, 67, 72], 0.4, 24000), tones.tone(76, 30.0, 24000)])
    raw, begun_s = (sound * 32767).astype("<i2").tobytes(), []

    def play():
        process.stderr.readline()  # "tones hears stdin": it listens
        begun_s.append(time.monotonic())
        for place in range(0, len(raw), 960):  # of 20 ms
            ahead_s = begun_s[0] + place / 48000 - time.monotonic()
            time.sleep(max(ahead_s, 0.0))
            try:
                process.stdin.write(raw[place : place + 960])
                process.stdin.flush()
            except OSError:
                return

    player = threading.Thread(target=play, daemon=True)
    player.start()
    lines, late_s = [], []
    while not lines or lines[-1]["pitch"] != 76:
        lines.append(json.loads(process.stdout.readline()))
        late_s.append(time.monotonic() - begun_s[0] - lines[-1]["time_s"])
    process.send_signal(signal.SIGINT)
    lines += [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.wait(10) == 0, process.stderr.read()
    assert [line["note"] for line in lines if line["event"] == "on"] == ["C4", "G4", "C5", "E5"]
    assert [line["event"] for line in lines[-2:]] == ["off", "end"]
    assert lines[-1]["overruns"] == lines[-1]["lost_s"] == 0
    assert min(late_s) > 0.0  # nothing is told before it sounds
    assert np.median(late_s) < 1.0
    notes = read_midi(tmp_path / "take.mid")
    assert notes.pitch.tolist() == [60, 67, 72, 76]
    np.testing.assert_allclose(notes.onset_s, [0.1, 0.6, 1.1, 1.6], atol=0.06)
    assert b"4 notes -> take.mid" in process.stderr.read()


def test_a_file_to_its_end_into_all_forms(wav, capfd):
    outputs = [word for name in ("a.mid", "a.csv", "a.jsonl") for word in ("-o", name)]
    assert main(["listen", "--file", wav, "--as-fast-as-possible", *outputs]) == 0
    said = capfd.readouterr()
    assert [line.split()[2] for line in said.out.splitlines()] == ["A4", "A4", "C5", "C5"]
    assert "2 notes -> a.mid, a.csv, a.jsonl." in said.err
    assert read_midi("a.mid").pitch.tolist() == read_csv("a.csv").pitch.tolist() == [69, 72]
    assert len(Path("a.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def stdin(monkeypatch):
    def put(data):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))

    return put


def test_a_wav_file_in_the_pipe_is_told_when_it_is_known(stdin, monkeypatch, capfd):
    file = io.BytesIO()
    soundfile.write(file, tones.melody([69], 0.2, 44100), 44100, format="WAV")
    stdin(file.getvalue())
    assert main(["listen", "--stdin"]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0].endswith("tones hears stdin; Ctrl-C ends.")
    assert said[1].endswith("sound comes from stdin (WAV, s16le, 44100 Hz, mono).")
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: terminal(screen))
    monkeypatch.setattr(view, "FRAME_S", 0.0)
    stdin(file.getvalue())
    assert main(["listen", "--stdin"]) == 0
    assert "s16le, 16000 Hz" not in screen.getvalue()
    assert "stdin (WAV, s16le, 44100 Hz, mono)" in screen.getvalue()


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_no_sound_at_all_is_told_and_names_no_files(stdin, json_too, capfd):
    stdin(b"")
    Path("a.jsonl").write_text("older\n")
    outputs = [word for name in ("a.mid", "a.csv", "a.jsonl") for word in ("-o", name)]
    assert main(["listen", "--stdin", *outputs, *json_too]) == 2
    said = capfd.readouterr()
    assert "no sound came from stdin; nothing was written." in said.err
    assert "a.mid" not in said.err + said.out
    assert [line for line in said.out.splitlines() if "exit_code" not in line] == []
    assert Path("a.jsonl").read_text() == "older\n"
    assert sorted(path.name for path in Path().iterdir()) == ["a.jsonl"]


def test_stopped_before_any_sound_no_files_are_named(root, tmp_path):
    command = [sys.executable, TONES, "--stdin", "--json", "-o", "take.mid", "-o", "take.jsonl"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert b"hears stdin" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    (line,) = process.stdout.read().splitlines()
    assert process.wait(10) == 0
    assert json.loads(line)["outputs"] == []
    assert b"take" not in process.stderr.read()
    assert not list(tmp_path.iterdir())
    process.stdin.close()


def test_the_pitch_of_a_file(wav, capfd):
    args = ["listen", "--file", wav, "--as-fast-as-possible", "--pitch", "-o", "a.csv", "--json"]
    assert main(args) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    contour = read_contour("a.csv")
    assert len(lines) == len(contour) + 1
    assert {line["note"] for line in lines[:-1]} == {"", "A4 +0", "C5 +0"}


def test_an_unplugged_device_keeps_the_files(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", tones.FakeSoundCard())
    args = ["listen", "--device-in", "0", "-o", "a.mid", "--json", "--buffer", "5"]
    assert main(args) == 1
    said = capfd.readouterr()
    assert "Fake Mic stopped giving sound" in said.err
    end = json.loads(said.out.splitlines()[-1])
    assert (end["event"], end["exit_code"], end["outputs"]) == ("end", 1, ["a.mid"])
    assert "Fake Mic" in end["error"]
    assert read_midi("a.mid").pitch.tolist() == [69, 72]


@pytest.fixture
def midi(monkeypatch):
    """A MIDI system whose one output can be looked into."""
    port = EchoPort()
    monkeypatch.setattr(port, "close", lambda: None)
    system = types.SimpleNamespace(
        get_output_names=lambda: ["Synth"], open_output=lambda name, virtual: port, port=port
    )
    monkeypatch.setattr("musicjax.infer.sinks._mido", lambda backend: (mido, system))
    return system


def test_notes_go_to_a_midi_port(wav, midi, capfd):
    assert main(["listen", "--file", wav, "--as-fast-as-possible", "--midi-port", "synth"]) == 0
    sent = [(m.type, m.note) for m in midi.port.iter_pending()]
    assert sent == [("note_on", 69), ("note_off", 69), ("note_on", 72), ("note_off", 72)]
    assert "MIDI port Synth" in capfd.readouterr().err
    assert main(["listen", "--file", wav, "--midi-port", "organ"]) == 2
    assert "there are: Synth" in capfd.readouterr().err


def test_ports_and_microphones_are_listed(midi, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", tones.FakeSoundCard(inputs=2))
    assert main(["listen", "--midi-port", "?"]) == 0
    assert capfd.readouterr() == ("Synth\n", "")
    assert main(["listen", "--device-in", "?"]) == 0
    assert capfd.readouterr() == ("  0  Fake Mic\n  1  Fake Mic\n", "")
    assert main(["listen", "--device-in", "?", "--midi-port", "?", "--json"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    cards = [{"number": n, "name": "Fake Mic"} for n in (0, 1)]
    assert json.loads(line) == {"microphones": cards, "midi_ports": ["Synth"]}
    midi.get_output_names = lambda: []
    monkeypatch.setitem(sys.modules, "sounddevice", tones.FakeSoundCard(inputs=0))
    assert main(["listen", "--midi-port", "?", "--device-in", "?"]) == 0
    said = capfd.readouterr()
    assert said.out == "" and "no microphones" in said.err and "no MIDI ports" in said.err


def terminal(screen, **settings):
    """A terminal of 100 by 30 characters, whatever the environment says of ours."""
    facts = {"color_system": "truecolor", "no_color": False, "_environ": {}, **settings}
    return Console(file=screen, force_terminal=True, width=100, height=30, **facts)


def test_a_terminal_shows_the_roll_and_says_how_it_went(wav, monkeypatch, capfd):
    screen = io.StringIO()
    console = terminal(screen)
    monkeypatch.setattr(view, "FRAME_S", 0.0)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    assert main(["listen", "--file", wav, "-o", "a.mid"]) == 0
    drawn = screen.getvalue()
    assert "\x1b[?1049h" in drawn and drawn.endswith("\x1b[?1049l")
    for shown in ("tones", "song.wav", "a.mid", "latency", "load", "C4"):
        assert shown in drawn
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 4  # stdout is no terminal here
    assert "2 notes -> a.mid" in said.err


@pytest.mark.parametrize("settings", [{"no_color": True}, {"color_system": None}])
def test_a_terminal_without_colours_has_lines(wav, settings, monkeypatch, capfd):
    """The roll, the keyboard and the level are nothing but colours."""
    screen = io.StringIO()
    console = terminal(screen, **settings)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    assert main(["listen", "--file", wav, "--as-fast-as-possible"]) == 0
    said = capfd.readouterr()
    assert "\x1b[?1049h" not in screen.getvalue()
    assert len(said.out.splitlines()) == 4
    assert "tones hears song.wav; Ctrl-C ends." in said.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--file", "gone.wav"], "gone.wav does not exist"),
        (["--file", "song.wav", "-o", "song.wav"], "also the input"),
        (["--file", "song.wav", "-o", "a.mid", "-o", "a.mid"], "two outputs are one file"),
        (["--file", "song.wav", "-o", "a.wav"], "no ending"),
        (["--file", "song.wav", "--rate", "8000"], "--stdin"),
        (["--as-fast-as-possible"], "a microphone cannot"),
        (["--file", "song.wav", "--buffer", "0"], "a buffer of 0"),
        (["--stdin", "--format", "mp3"], "s16le, s32le, f32le"),
        (["--stdin", "--rate", "0"], "the rate is 0 Hz; give one from 1000"),
        (["--stdin", "--channels", "0"], "there are 0 channels; give 1 to 256"),
        (["--stdin", "--file", "song.wav"], "not allowed with"),
    ],
)
def test_wrong_use_is_told_before_anything_is_heard(wav, args, sentence, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", tones.FakeSoundCard())
    assert main(["listen", *args]) == 2
    assert sentence in capfd.readouterr().err


SMALL = Path(musicjax.__file__).parent / "models" / "piano_ar" / "weights" / "small.safetensors"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--buffer", "-1"], "a buffer of -1.0 s holds nothing"),
        (["--buffer", "nan"], "a buffer of nan s holds nothing"),
        (["--pitch", "--decoder", "viterbi"], "crepe follows a stream without decoder"),
        (["--model", "crepe.full", "--voicing", "2"], "voicing is 2.0; it must lie between 0"),
        (["--model", "piano_ar.small", "--min-duration-s", "1"], "without options"),
        (["--model", str(SMALL), "--min-duration-s", "1"], "without options"),
    ],
)
def test_wrong_settings_are_told_before_a_model_is_loaded(
    wav, args, sentence, tmp_path, monkeypatch, capfd
):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("musicjax.hub.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert main(["listen", "--file", wav, *args]) == 2
    said = capfd.readouterr().err
    assert sentence in said and "hears" not in said


def test_wrong_times_are_told_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(live, "load_streamer", lambda *_, **__: pytest.fail("it was loaded"))
    for wrong in ({"buffer_s": 0.0}, {"stall_s": -1.0}):
        with pytest.raises(ConfigError, match="seconds above 0"):
            musicjax.listen([np.zeros(10)], sample_rate=16000, **wrong)


def test_a_model_that_cannot_be_loaded_leaves_files_alone(wav, monkeypatch, capfd):
    def fails(*_, **__):
        raise WeightsError("there are no weights.")

    monkeypatch.setattr(live, "load_streamer", fails)
    Path("a.jsonl").write_text("older\n")
    outputs = [word for name in ("a.mid", "a.csv", "a.jsonl") for word in ("-o", name)]
    assert main(["listen", "--file", wav, "--pitch", *outputs]) == 2
    assert "no weights" in capfd.readouterr().err
    assert Path("a.jsonl").read_text() == "older\n"
    assert not list(Path().glob("a.mid")) and not list(Path().glob("a.csv"))


def test_without_a_sound_card_it_says_what_to_do(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", tones.FakeSoundCard(inputs=0))
    assert main(["listen"]) == 2
    said = capfd.readouterr().err
    assert "no microphone" in said and "--stdin" in said and "--file" in said


def test_from_python(wav):
    events = list(musicjax.listen([tones.melody([69], 0.2)], sample_rate=tones.RATE))
    assert [event.pitch for event in events if isinstance(event, NoteOn)] == [69]
    with musicjax.listen(wav, pitch=True) as listening:
        frames = list(listening)
    assert all(isinstance(frame, PitchFrame) for frame in frames)
    assert listening.figures.time_s == pytest.approx(0.7, abs=0.05)
    with pytest.raises(ConfigError, match="sample_rate"):
        musicjax.listen([np.zeros(10)])


# Which model listens --------------------------------------------------------------------------


def test_models_that_cannot_listen_are_refused_with_those_that_can(tiny_weights, monkeypatch):
    monkeypatch.undo()
    for whole in ("onsets_frames.small", tiny_weights):
        with pytest.raises(ConfigError, match=r"hears whole recordings.*these can: "):
            live.resolve(whole)
    with pytest.raises(ModelNotFoundError):
        live.resolve("no.such")
    assert live.resolve("piano_ar.small") == ("piano_ar.small", False)
    with pytest.raises(ConfigError, match="follows no pitch"):
        live.resolve("piano_ar.small", pitch=True)


def test_the_model_is_the_one_made_for_it_or_the_smallest_at_hand(monkeypatch):
    monkeypatch.undo()
    where = {"crepe.tiny": Availability("cached"), "crepe.full": Availability("cached")}
    cards = {id(musicjax.model_card(name)): where[name] for name in where}
    monkeypatch.setattr(live, "PITCH_MODEL", "crepe.full")
    monkeypatch.setattr(
        live, "availability", lambda card: cards.get(id(card), Availability("none"))
    )
    monkeypatch.setattr(live, "can_stream", lambda model: model.__name__ == "Crepe")
    assert live.choose_live(True) == "crepe.full"
    monkeypatch.setattr(live, "PITCH_MODEL", "crepe.gone")
    assert live.choose_live(True) == "crepe.tiny"
    cards.clear()
    with pytest.raises(
        WeightsError, match=r"weights at hand; these can: .*crepe.tiny \(no weights"
    ):
        live.choose_live(True)
    with pytest.raises(WeightsError, match="none here can"):
        live.choose_live(False)
