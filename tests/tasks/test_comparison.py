"""Several models on one recording: all that can be heard is, beside the truth, drawn and scored."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musicjax
from musicjax.audio import Audio
from musicjax.cli import main
from musicjax.errors import AudioError, ConfigError, DataError, OutputError
from musicjax.notes import Notes, write_midi
from musicjax.tasks import transcribe as task

RATE = 16000


@pytest.fixture(autouse=True)
def small_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "WINDOW_S", 5.0)
    monkeypatch.setattr(task, "CPU_BATCH", 1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def song(tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)
    soundfile.write(tmp_path / "my_song.wav", samples, RATE)
    return "my_song.wav"


@pytest.fixture
def models(tiny_weights, tmp_path):
    """Two files of the same weights, and a third that is damaged."""
    names = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "broken")]
    for name in names:
        shutil.copy(tiny_weights, name)
    names[2].write_bytes(names[2].read_bytes()[:1000])
    return [str(name) for name in names]


def test_one_failure_does_not_lose_the_rest(song, models):
    heard = musicjax.load(models[0]).transcribe(song).notes
    done = []
    found = musicjax.compare(
        song, [*models, "no.such"], truth=heard, progress=lambda place, _: done.append(place)
    )
    assert list(found.notes) == models[:2]
    assert found.notes[models[0]] == heard
    assert found.scores[models[1]].onset_f1 == 1.0
    assert "not a whole safetensors file" in found.failures[models[2]]
    assert "no model is called 'no.such'" in found.failures["no.such"]
    assert found.duration_s == 2.0
    assert sorted(set(done)) == [0, 1]
    told = found.as_dict()
    assert list(told["models"]) == [*models, "no.such"]
    assert told["models"][models[0]]["scores"]["onset_f1"] == 1.0
    assert told["truth_notes"] == len(heard)


def test_a_crash_of_one_model_is_told(song, models, monkeypatch):
    whole = musicjax.load

    def fragile(name, **settings):
        if name == models[1]:
            raise RuntimeError("out of memory")
        return whole(name, **settings)

    monkeypatch.setattr("musicjax.tasks.loading.load", fragile)
    found = musicjax.compare(song, models[:2])
    assert list(found.notes) == models[:1]
    assert "RuntimeError: out of memory" in found.failures[models[1]]
    assert not found.scores and found.truth is None


def test_sources_and_forms(song, models, tmp_path):
    samples, rate = soundfile.read(song, dtype="float32")
    stream = io.BytesIO((tmp_path / song).read_bytes())
    notes = [
        musicjax.compare(source, models[:2], sample_rate=given).notes
        for source, given in ((song, None), (samples, rate), (Audio(samples, rate), None),
                              (stream, None))
    ]  # fmt: skip
    assert all(list(n.values()) == list(notes[0].values()) for n in notes)
    found = musicjax.compare(song, models[:1])
    assert found.write("a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(found.write("a.json").read_text())["recording"] == song
    with pytest.raises(OutputError, match=r"\.png, \.pdf, \.svg, \.json"):
        found.write("a.mid")


def test_what_cannot_be_read_is_told_before_the_work(song, models, monkeypatch):
    def too_late(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("musicjax.tasks.loading.load", too_late)
    with pytest.raises(AudioError, match="does not exist"):
        musicjax.compare("gone.wav", models)
    with pytest.raises(DataError, match="gone"):
        musicjax.compare(song, models, truth="gone.mid")
    with pytest.raises(ConfigError, match="no models"):
        musicjax.compare(song, [])


def test_the_verb_draws_and_scores(song, models, capfd):
    truth = Notes.from_arrays([0.5], [1.0], [60])
    write_midi(truth, "truth.mid")
    base = ["compare", song, "--truth", "truth.mid", "--models"]
    both = ",".join(models[:2])
    assert main([*base, both, "-o", "out.png", "-o", "out.json"]) == 0
    said = capfd.readouterr()
    assert "onset F1" in said.out and f"{song} -> out.png, out.json" in said.out
    assert json.loads(Path("out.json").read_text())["truth_notes"] == 1
    assert main([*base, ",".join(models), "-o", "part.svg", "--end", "1", "--json"]) == 1
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert told["outputs"] == ["part.svg"] and "error" in told["models"][models[2]]
    assert "broken.safetensors" in said.err
    assert main(["compare", song, "--models", models[2], "-o", "none.png"]) == 2
    assert main(["compare", song, "--models", both, "-o", "out.mid"]) == 2
    assert not any(Path(name).exists() for name in ("none.png", "out.mid"))


def test_without_names_all_that_are_at_hand_are_compared(song, monkeypatch, tiny_weights, capfd):
    monkeypatch.setattr("musicjax.tasks.choice.at_hand", lambda *_: [str(tiny_weights)])
    assert main(["compare", song, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told["models"]) == [str(tiny_weights)]
    assert told["outputs"] == ["my_song.png"]
