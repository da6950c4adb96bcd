"""What benchmarks/accuracy.py renders for its sets and prints of scores; nothing is transcribed."""

import importlib
import sys

import pytest


@pytest.fixture(scope="module")
def accuracy(root):
    with pytest.MonkeyPatch.context() as context:
        context.syspath_prepend(root / "benchmarks")
        yield importlib.import_module("accuracy")
    for name in ("accuracy", "harness", "transcribe", "command_line"):
        sys.modules.pop(name, None)


def test_bands_are_played_by_a_font_never_trained_on(accuracy, tmp_path, monkeypatch, capsys):
    rendered = []
    monkeypatch.setattr(accuracy, "available", lambda: True)
    monkeypatch.setattr(accuracy, "render_corpus", rendered.append)
    monkeypatch.setattr(accuracy, "examples", lambda _: ["a piece"])
    font = tmp_path / "unheard.sf2"
    wanted = ("bands, font", tmp_path, font, 0.5)
    assert list(accuracy.sets([wanted[0]], *wanted[1:])) == []
    assert "are missing: left out" in capsys.readouterr().out
    (tmp_path / "midi").mkdir()
    for name in (*accuracy.BAND_SCORES, accuracy.GROOVES):
        (tmp_path / "midi" / f"{name}.tar.gz").touch()
    font.touch()
    assert list(accuracy.sets([wanted[0]], *wanted[1:])) == [("bands, font", ["a piece"])]
    (config,) = rendered
    assert config.ensemble and config.split == "test" and config.instruments == (str(font),)
    assert config.drums == (str(tmp_path / "midi" / "groove.tar.gz"),)
    assert config.num_examples == 1


def test_instruments_are_told_where_they_are_told_apart(accuracy, capsys):
    names = ("onset_f1", "onset_precision", "onset_recall", "onset_offset_f1", "frame_f1")
    scores = dict.fromkeys(names, 0.5)
    accuracy._print("a piano", scores)
    assert capsys.readouterr().out.count("\n") == 1
    programs = ("onset_family_f1", "onset_program_f1", "onset_offset_family_f1")
    scores |= dict.fromkeys((*programs, "onset_offset_program_f1"), 0.25)
    accuracy._print("a quartet", scores)
    assert "family 0.250, and program 0.250" in capsys.readouterr().out
    accuracy._print("a band", scores | {"drum_onset_f1": 0.75})
    assert "drums 0.750" in capsys.readouterr().out
