"""`musicjax convert t5x FOLDER --to SYSTEM`: what the words before and after the folder mean."""

import json

import numpy as np
import pytest
import t5x_files as files

from musicjax.cli import main
from musicjax.hub import load_model, read_header
from musicjax.hub.fingerprint import fingerprint
from musicjax.models.onsets_frames import convert


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = {"encoder": {"scale": np.ones(3, np.float32)}}
    return files.write_legacy(
        tmp_path / "checkpoint_5", {"target": target, "state": {"step": np.int32(5)}}
    )


def test_a_t5x_folder_becomes_a_file(folder, tiny_model, monkeypatch, capfd):
    asked = []

    def converter(path, tag):
        asked.append((path, tag))
        return tiny_model

    monkeypatch.setattr(convert, "convert", converter)
    args = ["--to", "onsets_frames.port", "-o", "ours.safetensors", "--json"]
    assert main(["convert", "t5x", "checkpoint_5", *args]) == 0
    assert main(["convert", *args, "t5x", "checkpoint_5"]) == 0
    assert [(path.name, tag) for path, tag in asked] == [("checkpoint_5", "port")] * 2
    told = json.loads(capfd.readouterr().out.splitlines()[0])
    assert told["source_sha256"] == fingerprint(folder)
    assert read_header("ours.safetensors")["extra"]["source"] == "checkpoint_5"
    assert load_model("ours.safetensors").config == tiny_model[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["t5x", "."], "not a whole|not a checkpoint folder of t5x"),
        (["t5x", "gone"], "gone is not a checkpoint folder of t5x"),
        (["transformers", "checkpoint_5"], "musicjax.hub.load_transformer reads"),
        (["keras", "checkpoint_5"], "before it t5x where it is a folder of T5X"),
        (["t5x", "transformers", "checkpoint_5"], "takes one checkpoint"),
    ],
)
def test_words_that_do_not_fit(folder, words, sentence, capfd):
    (folder / "checkpoint").rename(folder / "index")
    if words[-1] == "checkpoint_5":
        (folder / "index").rename(folder / "checkpoint")
    assert main(["convert", *words, "--to", "onsets_frames.port", "-o", "o.safetensors"]) == 2
    said = capfd.readouterr().err
    assert any(part in said for part in sentence.split("|")), said


def test_a_folder_is_not_said_to_be_missing(folder, tmp_path, capfd):
    args = ["--to", "lp_musiccaps.base", "-o", "o.safetensors"]
    assert main(["convert", "checkpoint_5", *args]) == 2
    assert "checkpoint_5 is a folder; give the PyTorch checkpoint itself" in capfd.readouterr().err
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bart" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bart" / name).write_text("{}")
    assert main(["convert", "bart", *args]) == 2
    assert "bart is a folder of transformers: no system here" in capfd.readouterr().err
