"""Every recipe in `configs/`: its tiny run trains on a bare machine, the others are well formed."""

import dataclasses
import json
import pkgutil
from importlib import import_module

import jax
import pytest

import musicjax.configs
from musicjax.errors import ConfigError, TrainingStopped
from musicjax.hub.typed_json import to_json
from musicjax.registry import find_system
from musicjax.train import load_run_config, parse_overrides, train
from musicjax.train.interrupt import Signals

NAMES = sorted(module.name for module in pkgutil.iter_modules(musicjax.configs.__path__))


def recipe(name, variant="tiny", **changes):
    config = import_module(f"musicjax.configs.{name}").get_config(variant)
    return dataclasses.replace(config, **changes)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_there_are_recipes():
    assert "onsets_frames" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_tiny_trains_a_step(name, tmp_path):
    config = recipe(name, steps=1, eval_every=0, output=str(tmp_path), tensorboard=False)
    with jax.default_prng_impl("unsafe_rbg"):  # compiled in a fraction of the usual time
        train(config, show=False)
    ((step, loss),) = losses(tmp_path)
    assert step == 1 and loss is not None
    assert load_run_config(tmp_path) == config


# That a run resumes is the trainer's doing (`tests/train/test_loop.py`); these keep state of their
# own beside parameters: running statistics of the sound, a count of steps, a mixture's place.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["crepe", "mt3", "piano_ar"])
def test_tiny_interrupted_continues_bit_for_bit(name, tmp_path, monkeypatch):
    settings = {"steps": 6, "eval_every": 0, "log_every": 1, "tensorboard": False}
    train(recipe(name, output=str(tmp_path / "whole"), **settings), show=False)
    broken = recipe(name, output=str(tmp_path / "broken"), **settings)
    with monkeypatch.context() as context:
        context.setattr(Signals, "received", 15, raising=False)
        context.setattr(Signals, "__init__", lambda self: setattr(self, "_before", {}))
        with pytest.raises(TrainingStopped):
            train(broken, show=False)
    assert len(losses(tmp_path / "broken")) == 1
    train(broken, show=False)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_command_hardware_time_and_score(name):
    words = (import_module(f"musicjax.configs.{name}").__doc__ or "").lower()
    for word in (f"musicjax train {name}", "hardware", "time", "score"):
        assert word in words


VARIANTS = [
    *((name, variant) for name in NAMES for variant in ("tiny", "small", "base")),
    ("crepe", "ours"),
    ("mt3", "mini"),
    ("piano_ar", "small_fast"),
    ("transkun", "finetune"),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_variants_are_whole(name, variant):
    config = recipe(name, variant)
    assert config.system == find_system(config.system).name and config.variant == variant
    json.dumps(to_json(config))
    hash(config.model)
    assert parse_overrides(config, ["--steps", "7", "--data.batch_size", "16"]).steps == 7


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variant_is_a_sentence(name):
    with pytest.raises(ConfigError, match="tiny"):
        recipe(name, "gigantic")
