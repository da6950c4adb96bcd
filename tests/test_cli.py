"""The command line: help, machine-readable output, exit codes, options of the decoding."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicjax import registry
from musicjax.cli import _model_lines, _model_row, main
from musicjax.notes import read_csv, read_midi
from musicjax.tasks import load
from musicjax.tasks import transcribe as task
from musicjax.version import __version__

VERBS = (
    "transcribe", "pitch", "listen", "caption", "compare", "models", "train", "eval", "data",
    "convert", "bench",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "WINDOW_S", 5.0)
    monkeypatch.setattr(task, "CPU_BATCH", 10)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recordings(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 8000), 16000)
    return ["a.wav", "b.wav"]


def lines(capfd):
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb, capfd):
    assert main([verb, "--help"]) == 0
    said = capfd.readouterr().out
    assert "examples:" in said
    assert f"musicjax {verb}" in said.split("examples:")[1]


def test_help_and_models_import_nothing_heavy(root):
    code = """
import sys
from musicjax import registry
from musicjax.cli import _model_lines, _model_row, main
codes = [main(["--help"]), main(["transcribe", "--help"]), main(["models"])]
heavy = {"jax", "flax", "numpy", "librosa", "matplotlib"} & set(sys.modules)
assert codes == [0, 0, 0] and not heavy, (codes, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command(root):
    command = [sys.executable, "-m", "musicjax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == f"musicjax {__version__}"


@pytest.mark.parametrize(
    "args", [[], ["sing"], ["transcribe"], ["transcribe", "a", "--modle", "x"]]
)
def test_wrong_use_is_code_2(args, capfd):
    assert main(args) == 2


def test_transcribe_for_programs(tiny_weights, recordings, capfd):
    args = [
        "transcribe",
        *recordings,
        "gone.wav",
        "-o",
        "out",
        "--format",
        "mid",
        "--format",
        "csv",
    ]
    assert main([*args, "--model", str(tiny_weights), "--json"]) == 1
    first, second, third = lines(capfd)
    assert first["outputs"] == ["out/a.mid", "out/a.csv"]
    assert first["duration_s"] == 0.5
    assert first["notes"] == len(read_midi("out/a.mid")) == len(read_csv("out/a.csv"))
    assert second["error"] is None
    assert "does not exist" in third["error"]


@pytest.mark.parametrize(
    "args", [["transcribe", "gone.flac", "."], ["pitch", "gone.flac"], ["eval", "MODEL", "gone"]]
)
def test_no_model_is_loaded_for_what_is_not_there(args, capfd, monkeypatch):
    monkeypatch.setattr("musicjax.tasks.load", lambda *_, **__: pytest.fail("loaded"))
    where = ["--model", "transkun.v2"] if args[0] == "transcribe" else []
    assert main([*args, *where, "--json"]) == 2
    told = lines(capfd)
    assert "does not exist" in told[0]["error"]
    assert len(told) == 1 or "is a folder" in told[1]["error"]


def test_transcribe_for_people(tiny_weights, recordings, capfd):
    args = ["transcribe", "a.wav", "--model", str(tiny_weights), "-o", "x.mid", "-o", "x.json"]
    assert main(args) == 0
    said = capfd.readouterr()
    assert said.out.startswith("a.wav -> x.mid, x.json: ")
    assert said.err == ""


def test_decoding_options_are_typed(tiny_weights, recordings, capfd):
    base = ["transcribe", "--model", str(tiny_weights), "--json"]
    assert main([*base, "--onset-threshold", "1.0", "a.wav"]) == 0
    assert lines(capfd)[0]["notes"] == 0
    assert main([*base, "a.wav", "--onset-threshold=0.0", "--split-reonsets", "true"]) == 0
    assert lines(capfd)[0]["notes"] > 0
    assert main([*base, "a.wav", "--onset-threshold", "loud"]) == 2
    assert "type float" in capfd.readouterr().err
    assert main([*base, "a.wav", "--onset-threshold", "7"]) == 2
    assert "onset_threshold is 7.0; expected 0" in capfd.readouterr().err
    assert main([*base, "a.wav", "--onset-treshold", "0.5"]) == 2
    assert "did you mean --onset-threshold" in capfd.readouterr().err


def test_errors_for_programs(capfd):
    assert main(["models", "no.such", "--json"]) == 2
    (told,) = lines(capfd)
    assert told["exit_code"] == 2
    assert "no.such" in told["error"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["transcribe"], "FILE"),
        (["transcribe", "a.wav", "--format", "doc"], "invalid choice: 'doc'"),
        (["transcribe", "a.wav", "--modle", "x"], "no option --modle"),
        (["transcribe", ""], "is empty"),
        (
            ["transcribe", "a.wav", "-o", "a.mid", "-o", "a.mid"],
            "written to a.mid twice",
        ),
        (
            ["caption", "a.wav", "--weights", "gone"],
            "gone does not exist; give a",
        ),
        (["sing"], "invalid choice: 'sing'"),
        (["train", "onsets_frames", "tiny", "--steps", "-3"], "steps is -3; expected 1 or more"),
        (["train", "onsets_frames", "tiny", "--optim.lr", "fast"], "to float: 'fast'. `--help`"),
        (["data", "compose", "--outt", "x"], "Missing from musicjax data compose: --out PATH"),
        (
            ["eval", "onsets_frames.small", "gone"],
            "gone does not exist: give a folder",
        ),
        (["models", "nosuch"], "there are: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_is_one_sentence_and_json(args, words, capfd):
    assert main([*args, "--json"]) == 2
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert told["exit_code"] == 2 and words in told["error"]
    assert said.err == f"musicjax: {told['error']}\n"
    assert "---" not in said.err and "\u2500" not in said.err


def test_models_lists_and_filters(capfd):
    assert main(["models", "--json"]) == 0
    (rows,) = lines(capfd)
    assert {"name", "parameters", "weights", "licence", "paper"} <= rows[0].keys()
    assert main(["models", "onsets_frames"]) == 0
    assert "onsets_frames.small" in capfd.readouterr().out
    assert main(["models", "*zzz*"]) == 2


def test_models_is_a_line_each_in_a_pipe_and_fits_a_terminal(capfd):
    names = registry.list_models()
    assert main(["models"]) == 0
    head, *told = capfd.readouterr().out.splitlines()
    assert head.startswith("model ")
    for name, line in zip(names, told, strict=True):
        assert line.startswith(f"{name} ")
        assert line.endswith(registry.model_card(name).summary)
    told = list(_model_lines([_model_row(name) for name in names], 80))
    assert max(map(len, told)) <= 80
    assert [line.split()[0] for line in told if not line.startswith(" ")] == ["model", *names]


def test_models_tells_what_a_folder_without_a_known_size_takes_at_least(capfd, monkeypatch):
    monkeypatch.setenv("MUSICJAX_CACHE", "empty")
    monkeypatch.delenv("MUSICJAX_MIRROR", raising=False)
    assert main(["models", "mt3.mt3"]) == 0
    assert "at least 184 MB to fetch" in capfd.readouterr().out


def test_eval_on_a_folder(tiny_weights, recordings, capfd):
    base = ["transcribe", *recordings, "--model", str(tiny_weights)]
    assert main(base) == 0
    capfd.readouterr()
    assert main(["eval", str(tiny_weights), ".", "--json"]) == 0
    (found,) = lines(capfd)
    assert found["pieces"] == 2
    assert found["mean"]["onset_f1"] == 1.0
    assert main(["eval", str(tiny_weights), "."]) == 0
    assert "mean of 2" in capfd.readouterr().out


def test_bench_tells_first_and_steady(tiny_weights, capfd):
    args = ["bench", "--model", str(tiny_weights), "--seconds", "2", "--repeats", "2", "--json"]
    assert main(args) == 0
    (row,) = lines(capfd)
    assert row["first_s"] > 0
    assert row["times_real_time"] == pytest.approx(2 / row["median_s"], abs=0.1)
    assert main(["bench", "--model", str(tiny_weights), "--seconds", "0"]) == 2


def test_bench_times_pitch_as_well(monkeypatch, capfd):
    monkeypatch.setattr("musicjax.infer.bench.measure", lambda work, **_: {"of": work.__name__})
    assert main(["bench", "--model", "crepe.ours", "--json"]) == 0
    assert lines(capfd) == [{"model": "crepe.ours", "of": "pitch"}]
    assert main(["bench", "--model", "lp_musiccaps.base"]) == 2
    assert "does 'caption'; bench measures" in capfd.readouterr().err


def test_unknown_configs_and_fields_are_told(tmp_path, capfd):
    assert main(["train", "onset_frames"]) == 2
    assert "onsets_frames" in capfd.readouterr().err
    assert main(["train", "onsets_frames", "tiny", "--optim.lrr", "1"]) == 2
    assert "--optim.lr" in capfd.readouterr().err
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert main(["train", "mine.py"]) == 2
    assert "get_config" in capfd.readouterr().err


def test_train_runs_a_config_file_of_the_users(tmp_path, monkeypatch, capfd):
    (tmp_path / "mine.py").write_text(
        "from musicjax.configs.onsets_frames import get_config as base\n"
        "def get_config(variant='tiny'):\n    return base(variant)\n"
    )
    seen = []
    monkeypatch.setattr("musicjax.train.loop.train", lambda c, evaluate: seen.append(c) or "w")
    assert main(["train", "mine.py", "--steps", "3"]) == 0
    assert capfd.readouterr().out == "w\n"
    assert seen[0].steps == 3
    assert main(["train", "mine.py", "--json", "--steps", "4"]) == 0
    assert lines(capfd) == [{"weights": "w"}]
    assert seen[1].steps == 4


def test_convert_writes_a_file_that_loads(tmp_path, tiny_model, monkeypatch, capfd):
    from musicjax.hub import load_model
    from musicjax.models.onsets_frames import convert

    base = ["convert", "theirs.pt", "--model", "onsets_frames.port"]
    assert main([*base, "-o", "ours.safetensors"]) == 2
    assert "theirs.pt" in capfd.readouterr().err
    (tmp_path / "theirs.pt").write_bytes(b"theirs")
    monkeypatch.setattr(convert, "convert", lambda path, tag: tiny_model)
    assert main([*base, "-o", "gone/ours.safetensors"]) == 2
    assert "no folder" in capfd.readouterr().err
    assert main([*base, "-o", "ours.safetensors", "--json"]) == 0
    assert lines(capfd)[0]["tag"] == "port"
    assert load_model("ours.safetensors").config == tiny_model[1]


def test_data_takes_typed_options(tmp_path, capfd):
    assert main(["data", "compose", "--out", "pieces", "--seconds", "5"]) == 0
    assert len(read_midi(next((tmp_path / "pieces").glob("*.mid")))) > 0
    assert main(["data", "compose", "--outt", "pieces"]) == 2
    capfd.readouterr()
    args = ["--out", "records", "--hours", "0.0005", "--excerpt-s", "1", "--processes", "1"]
    assert main(["data", "render", *args, "--json"]) == 0
    (told,) = lines(capfd)
    assert told["examples"] == 2 and told["out"] == "records"


def test_a_better_model_is_told_of_once_and_after_the_first_success(
    tiny_weights, recordings, monkeypatch, capfd
):
    loaded = load(tiny_weights)
    monkeypatch.setattr("musicjax.tasks.loading.load", lambda *_, **__: loaded)
    monkeypatch.setattr("musicjax.cli._advice", lambda _: "take another")
    Path("bad.wav").write_text("words")
    assert main(["transcribe", "bad.wav", "-o", "bad.mid"]) == 2
    assert "take another" not in capfd.readouterr().err
    assert main(["transcribe", "bad.wav", *recordings, "-o", "out"]) == 1
    assert capfd.readouterr().err.count("take another") == 1
