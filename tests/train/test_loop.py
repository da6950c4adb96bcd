"""Whole runs of the little system: files, continuation, interruption, bad data, fine-tuning."""

import json
import math
import os
import signal
import socket
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from little_system import SYSTEM, Batches, Little, LittleConfig, run_config

from musicjax import registry
from musicjax.errors import (
    ConfigError,
    MissingDependencyError,
    TrainingError,
    TrainingStopped,
    WeightsError,
)
from musicjax.hub import load_model, read_header
from musicjax.train import export_checkpoint, train
from musicjax.train.checkpoints import Checkpoints
from musicjax.train.warmstart import flat_variables, load_matching, read_weights, renamed


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "systems", lambda: {"little": SYSTEM})


class Score:
    """An evaluation with scores known beforehand; keeps what it was given."""

    def __init__(self, *scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, model):
        self.seen.append({k: np.asarray(v) for k, v in flat_variables(model).items()})
        return {"score": self.scores[len(self.seen) - 1], "other": 0.0}


def lines(folder, kind="train"):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in lines(folder)]


def run(folder, evaluate=None, batches=None, **changes):
    batches = batches or Batches()
    return train(run_config(folder, **changes), SYSTEM, evaluate, batches=batches, show=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of twenty steps."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def weights(path):
    return {k: np.asarray(v) for k, v in flat_variables(load_model(path).model).items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_leaves_its_files(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "checkpoints", "config.json", "environment.json", "final.safetensors", "log.jsonl",
    }  # fmt: skip
    config = json.loads((whole / "config.json").read_text())
    assert config["optim"]["lr"] == 1e-2 and config["model"]["width"] == 16
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert {"device", "backend", "git", "python"} <= environment.keys()
    assert [step for step, _ in losses(whole)] == list(range(1, 21))
    first, second = lines(whole)[:2]
    assert {"learning_rate", "grad_norm", "error", "compile_s"} <= first.keys()
    assert {"examples_per_s", "audio_s_per_s", "step_s"} <= second.keys()
    assert 0 <= second["input_stall"] <= 1 and "compile_s" not in second
    assert read_header(whole / "final.safetensors")["extra"]["step"] == 20
    with Checkpoints(whole, run_config(whole).checkpoint) as checkpoints:
        assert checkpoints.steps[-2:] == [15, 20]


def test_it_learns(whole):
    values = [loss for _, loss in losses(whole)]
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_killed_run_continues_bit_for_bit(whole, tmp_path, start):
    killed = start("run_little.py", str(tmp_path), "13")
    said, _ = killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL, said
    with Checkpoints(tmp_path, run_config(tmp_path).checkpoint) as checkpoints:
        assert checkpoints.latest in (5, 10)
    run(tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert_same_weights(
        weights(tmp_path / "final.safetensors"), weights(whole / "final.safetensors")
    )


class Interrupting(Batches):
    """Sends its process a signal at the ninth batch; with `and_fail`, also raises."""

    def __init__(self, number, and_fail):
        super().__init__()
        self.number, self.and_fail = number, and_fail

    def __next__(self):
        if self.next == 8:
            os.kill(os.getpid(), self.number)
            if self.and_fail:
                raise RuntimeError("a worker was interrupted")
        return super().__next__()


@pytest.mark.parametrize(
    ("number", "code", "and_fail"), [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)]
)
def test_asked_to_stop_it_saves_and_continues(whole, tmp_path, number, code, and_fail):
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped, match="run the same command again") as caught:
        run(tmp_path, batches=Interrupting(number, and_fail))
    assert caught.value.exit_code == code and signal.getsignal(number) is before
    with Checkpoints(tmp_path, run_config(tmp_path).checkpoint) as checkpoints:
        assert checkpoints.latest == losses(tmp_path)[-1][0] < 20
    run(tmp_path)
    assert losses(tmp_path) == losses(whole)


def test_finished_run_has_nothing_to_do(whole):
    before = losses(whole)
    assert run(whole) == whole / "final.safetensors"
    assert losses(whole) == before


def test_best_is_kept_and_returned(tmp_path):
    score = Score(0.1, 0.9, 0.3, 0.2, 0.4)
    changes = {"eval_every": 4, "checkpoint": {"save_every": 100, "keep": 1, "keep_best": 1}}
    path = run(tmp_path, score, **changes)
    assert path == tmp_path / "best.safetensors"
    header = read_header(path)["extra"]
    assert header["step"] == 8 and header["scores"]["score"] == 0.9
    assert [entry["score"] for entry in lines(tmp_path, "valid")] == score.scores
    with Checkpoints(tmp_path, run_config(tmp_path, **changes).checkpoint) as checkpoints:
        assert checkpoints.steps == [8, 20]
    stored = weights(path)
    for name, value in score.seen[1].items():
        np.testing.assert_allclose(stored[name], value, rtol=2**-10, atol=1e-6)


def test_an_evaluation_that_fails_costs_no_steps(whole, tmp_path):
    changes = {"eval_every": 7, "checkpoint": {"save_every": 100}}
    with pytest.raises(IndexError):
        run(tmp_path, Score(), **changes)
    with Checkpoints(tmp_path, run_config(tmp_path).checkpoint) as checkpoints:
        assert checkpoints.latest == 7
    run(tmp_path, Score(1.0, 1.0), **changes)
    assert losses(tmp_path) == losses(whole)


def test_lowest_is_best_when_asked(tmp_path):
    changes = {"eval_every": 10, "checkpoint": {"mode": "min"}}
    run(tmp_path, Score(0.2, 0.8), **changes)
    assert read_header(tmp_path / "best.safetensors")["extra"]["step"] == 10


def test_metric_that_is_not_reported_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="it reports score, other"):
        run(tmp_path, Score(1.0), checkpoint={"metric": "f1"})


def test_evaluation_hears_the_averaged_weights(tmp_path):
    score = Score(1.0)
    run(tmp_path / "a", score)
    exported = export_checkpoint(tmp_path / "a", tmp_path / "out.safetensors", system=SYSTEM)
    for name, value in weights(exported).items():
        np.testing.assert_allclose(value, score.seen[0][name], rtol=2**-10, atol=1e-6)


def test_export_of_an_earlier_checkpoint(whole, tmp_path):
    out = export_checkpoint(whole, tmp_path / "fifteen.safetensors", step=15)
    last = export_checkpoint(whole, tmp_path / "last.safetensors")
    assert_same_weights(weights(last), weights(whole / "final.safetensors"))
    assert not np.array_equal(weights(out)["first.kernel"], weights(last)["first.kernel"])
    with pytest.raises(WeightsError, match=r"no checkpoint of step 3; its checkpoints: .*15, 20"):
        export_checkpoint(whole, tmp_path / "none.safetensors", step=3)


def test_bad_batches_are_counted_and_survived(tmp_path):
    run(tmp_path, batches=Batches(bad_from=3, bad_to=5))
    entries = lines(tmp_path)
    assert [e["skipped"] for e in entries[2:6]] == [0, 1, 2, 2]
    assert entries[3]["loss"] is None and math.isfinite(entries[-1]["loss"])


def test_too_many_bad_batches_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match="3 steps in a row up to step 6"):
        run(tmp_path, batches=Batches(bad_from=3, bad_to=20), optim={"max_skipped": 3})


def test_data_that_ends_or_fails_is_told(whole, tmp_path):
    class Ending(Batches):
        def __next__(self):
            if self.next == 4:
                raise StopIteration
            return super().__next__()

    class Failing(Batches):
        def __next__(self):
            raise ConfigError("this entry is not there.")

    with pytest.raises(TrainingError, match="data ended"):
        run(tmp_path / "a", batches=Ending())
    assert losses(tmp_path / "a") == losses(whole)[:4]
    with Checkpoints(tmp_path / "a", run_config(tmp_path).checkpoint) as checkpoints:
        assert checkpoints.latest == 4
    with pytest.raises(ConfigError, match="this entry is not there"):
        run(tmp_path / "b", batches=Failing())


def test_another_model_does_not_continue_a_run(whole):
    with pytest.raises(ConfigError, match=r"model.width was 16, now 8.*another --output"):
        run(whole, model={"width": 8})


def test_output_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="another --output"):
        run(tmp_path / "file" / "run")


def test_fine_tuning_starts_from_a_run(whole, tmp_path, capsys):
    train(run_config(tmp_path, init=str(whole)), SYSTEM, batches=Batches())
    said = capsys.readouterr().err
    assert "8 tensors loaded" in said
    assert "left unused" not in said and "new (random)" not in said
    assert losses(tmp_path)[0][1] < 0.5 * losses(whole)[0][1]


def test_fine_tuning_starts_from_a_checkpoint_of_a_run(whole, tmp_path, capsys):
    found = read_weights(f"{whole}@15", SYSTEM).tensors
    exported = export_checkpoint(whole, tmp_path / "15.safetensors", step=15, dtype="float32")
    for name, value in weights(exported).items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(WeightsError, match=r"no checkpoint of step 7; its checkpoints: \d+"):
        read_weights(f"{whole}@7", SYSTEM)
    train(run_config(tmp_path / "run", init=f"{whole}@15"), SYSTEM, batches=Batches())
    assert "8 tensors loaded" in capsys.readouterr().err


def test_fine_tuning_lists_what_fits_by_half(whole):
    model = Little(LittleConfig(width=5, norm=False), rngs=nnx.Rngs(0))
    state, source = nnx.state(model), weights(whole / "final.safetensors")
    changed, report = load_matching(state, source, "that run")
    assert report.loaded == ("last.bias",)
    np.testing.assert_allclose(changed["last"].bias[...], source["last.bias"])
    assert "first.kernel (64, 16) there, (64, 5) here" in report.new
    assert {"norm.mean", "norm.scale"} <= set(report.left)
    assert "that run: 1 tensors loaded\nleft unused, 7:" in str(report)
    with pytest.raises(WeightsError, match="without --init"):
        load_matching(state, {"other": source["last.bias"]}, "that run")


def test_parts_of_weights_can_take_other_names(whole, tmp_path, capsys):
    source = weights(whole / "final.safetensors")
    moved = renamed(source, ("first=stem", "norm=stem.norm"))
    assert moved["stem.kernel"] is source["first.kernel"]
    assert moved["stem.norm.mean"] is source["norm.mean"] and len(moved) == len(source)
    with pytest.raises(WeightsError, match=r"nothing .* is called 'firs'.*first, last"):
        renamed(source, ("firs=stem",))
    with pytest.raises(ConfigError, match="init_names is 'first'; expected a pair THERE=HERE"):
        run_config(tmp_path, init=str(whole), init_names=("first",))
    train(
        run_config(tmp_path, init=str(whole), init_names=("first=other",)),
        SYSTEM,
        batches=Batches(),
    )
    assert "first.kernel" in capsys.readouterr().err.split("new (random)")[1]


def test_tensorboard_gets_the_numbers(tmp_path):
    run(tmp_path, tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_missing_tensorboard_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingDependencyError, match=r"musicjax\[train\]"):
        run(tmp_path, tensorboard=True)


def test_weights_without_averaging_are_the_raw_ones(whole, tmp_path):
    run(tmp_path, optim={"ema_decay": 0.0})
    raw, averaged = weights(tmp_path / "final.safetensors"), weights(whole / "final.safetensors")
    assert losses(tmp_path) == losses(whole)
    assert not np.array_equal(raw["first.kernel"], averaged["first.kernel"])


def test_two_processes_train_as_one(tmp_path, start):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pair = [
        start(
            "two_processes.py",
            str(tmp_path / "two"),
            MUSICJAX_COORDINATOR=address,
            MUSICJAX_PROCESSES="2",
            MUSICJAX_PROCESS=str(index),
        )
        for index in range(2)
    ]
    for index, process in enumerate(pair):
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0 and f"DONE 2 {index}" in said, said
    run(tmp_path / "one", steps=6)
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [step for step, _ in two] == list(range(1, 7))
    np.testing.assert_allclose([x for _, x in two], [x for _, x in one], rtol=1e-5)
    assert (tmp_path / "two" / "best.safetensors").is_file()
