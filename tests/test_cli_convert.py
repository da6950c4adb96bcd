"""`musicjax convert`: published checkpoints of one file and of several, and those of a run."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from musicjax.cli import main
from musicjax.configs.onsets_frames import get_config
from musicjax.errors import WeightsError
from musicjax.hub import load_model, read_header
from musicjax.hub.fingerprint import fingerprint
from musicjax.models.onsets_frames import convert
from musicjax.train import load_run_config
from musicjax.train.checkpoints import Checkpoints
from musicjax.train.logs import write_run_files
from musicjax.train.state import make_optimizer, new_state
from musicjax.types import Policy

FIXTURES = Path(__file__).parent / "fixtures" / "onsets_frames"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tiny_model):
    """A folder as a training run leaves it, with checkpoints of steps 3 and 7."""
    config = replace(get_config("tiny"), output="runs/a")
    graph, state = nnx.split(tiny_model[0])
    Path(config.output).mkdir(parents=True)
    write_run_files(config)
    with Checkpoints(config.output, config.checkpoint) as checkpoints:
        for step in (3, 7):
            scaled = nnx.merge(graph, state)
            scaled.frame_out.bias[...] = float(step)
            optimizer = make_optimizer(config.optim, config.steps)
            moving = new_state(scaled, optimizer, config.optim)
            checkpoints.save(step, moving, {}, {"step": step, "best": None})
            checkpoints.wait()
    return config.output


def biases(path):
    return np.unique(load_model(path).model.frame_out.bias[...]).tolist()


def test_a_run_gives_its_newest_checkpoint_or_the_one_asked_for(run, tiny_model, capfd):
    assert main(["convert", run, "-o", "newest.safetensors", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told == {
        "output": "newest.safetensors",
        "system": "onsets_frames",
        "run": "a",
        "step": 7,
    }
    assert biases("newest.safetensors") == [7]
    assert load_model("newest.safetensors").config == tiny_model[1]
    args = ["convert", run, "--step", "3", "--dtype", "bfloat16", "-o", "third.safetensors"]
    assert main(args) == 0
    assert capfd.readouterr().out == "runs/a -> third.safetensors\n"
    assert biases("third.safetensors") == [3]
    assert Path("third.safetensors").stat().st_size < Path("newest.safetensors").stat().st_size


def test_weights_trained_in_bfloat16_compute_in_what_is_asked_for(run, tiny_model, capfd):
    config = load_run_config(run)
    policy = Policy(dtype="bfloat16")
    write_run_files(replace(config, model=replace(config.model, policy=policy)))
    assert main(["convert", run, "-o", "as-trained.safetensors"]) == 0
    assert load_model("as-trained.safetensors").config.policy == policy
    asked = ["--compute-dtype", "float32", "--dtype", "float16"]
    for source in (run, "as-trained.safetensors"):
        assert main(["convert", source, *asked, "-o", "cpu.safetensors", "--json"]) == 0
        found = load_model("cpu.safetensors")
        assert found.config == tiny_model[1] and found.config.policy == Policy()
        assert biases("cpu.safetensors") == [7]
        assert read_header("cpu.safetensors")["extra"] == {"run": "a", "step": 7}


def test_what_is_no_run_is_a_sentence(run, tmp_path, capfd):
    for args, said in [
        ([run, "--step", "4"], "no checkpoint of step 4; its checkpoints: 3, 7"),
        (["."], "not a run directory"),
        (["theirs.pt"], "say with --model"),
        (["gone.safetensors"], "no weights file gone.safetensors"),
        (["gone.safetensors", "--step", "3"], "gone.safetensors is one file"),
        ([run, "--model", "onsets_frames.port", "--step", "3"], "leave out --model"),
        ([run, "--model", "onsets_frames.magenta"], "0 TensorFlow checkpoints"),
    ]:
        assert main(["convert", *args, "-o", "out.safetensors"]) == 2
        assert said in capfd.readouterr().err
        assert not Path("out.safetensors").exists()


def test_a_checkpoint_of_several_files(tiny_model, monkeypatch, capfd):
    monkeypatch.setattr(convert, "from_variables", lambda variables, tag: tiny_model)
    prefix = FIXTURES / "magenta_tiny"
    args = ["convert", str(prefix), "--model", "onsets_frames.magenta", "-o", "ours.safetensors"]
    assert main(args) == 0
    extra = read_header("ours.safetensors")["extra"]
    assert extra == {"source": "magenta_tiny", "source_sha256": fingerprint(prefix)}


def test_fingerprints_are_those_of_sha256sum(tmp_path):
    for name, text in {"m.index": "1", "m.data-0": "2", "n.index": "3", "f/x/y": "4"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def sha(text):
        return hashlib.sha256(text.encode()).hexdigest()

    assert fingerprint("m.index") == sha("1")
    assert fingerprint("m") == sha(f"{sha('2')}  m.data-0\n{sha('1')}  m.index\n")
    assert fingerprint("f") == sha(f"{sha('4')}  x/y\n")
    with pytest.raises(WeightsError, match="no checkpoint gone"):
        fingerprint("gone")
