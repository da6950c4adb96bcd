"""Overrides from the command line, sentences for wrong ones, and the way to JSON and back."""

import dataclasses
import json

import pytest
from little_system import SYSTEM, LittleConfig, run_config

from musicjax.errors import ConfigError
from musicjax.hub.typed_json import to_json
from musicjax.train.config import (
    MeshConfig,
    OptimConfig,
    field_names,
    load_run_config,
    parse_overrides,
)
from musicjax.types import Policy


def test_overrides_reach_nested_fields():
    config = run_config("out")
    args = ["--optim.lr", "3e-4", "--steps=7", "--model.policy.dtype", "bfloat16"]
    args += ["--data.batch-size", "4", "--data.train", "a", "b", "--tensorboard", "True"]
    changed = parse_overrides(config, args)
    assert changed.optim.lr == 3e-4 and changed.steps == 7 and changed.tensorboard is True
    assert changed.model == LittleConfig(policy=Policy(dtype="bfloat16"))
    assert changed.data.train == ("a", "b") and changed.data.batch_size == 4
    assert changed.optim.b1 == config.optim.b1 and config.optim.lr == 1e-2


def test_no_override_changes_nothing():
    config = run_config("out")
    assert parse_overrides(config, []) == config


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--optim.learning_rate", "--optim has name, lr, schedule"),
        ("--lr", "--optim.lr"),
        ("--optim.warmup_step", "--optim.warmup_steps"),
        ("--step", "--steps"),
        ("--colour", "the run itself has system, variant"),
        ("--paint.colour", "no field is like it"),
        ("--model.widht", "--model.width"),
    ],
)
def test_unknown_field_names_its_neighbours(argument, near):
    with pytest.raises(ConfigError, match="there is no field") as caught:
        parse_overrides(run_config("out"), [argument, "1"])
    assert near in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        ["--optim.lr", "fast"],
        ["--steps", "many"],
        ["--steps"],
        ["--optim.name", "lion"],
        ["stray"],
    ],
)
def test_value_of_another_type_is_a_sentence(args, capsys):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        parse_overrides(run_config("out"), args)
    assert args[-1].lstrip("-") in str(caught.value)
    assert not any(words in str(caught.value) for words in ("──", "---", "full helptext", "╭"))
    assert capsys.readouterr() == ("", "")


def test_value_that_cannot_work_is_a_sentence():
    with pytest.raises(ConfigError, match=r"optim.lr is -1.0; expected above 0"):
        parse_overrides(run_config("out"), ["--optim.lr", "-1"])
    with pytest.raises(ConfigError, match=r"steps is -3; expected 1 or more\. `--help` lists"):
        parse_overrides(run_config("out"), ["--steps", "-3"])
    with pytest.raises(ConfigError, match="multiple of 3"):
        run_config("out", optim={"accumulate": 3})
    for wrong in ({"warmup_steps": -1}, {"ema_decay": 1.0}, {"clip_norm": -1}, {"max_skipped": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            OptimConfig(**wrong)
    with pytest.raises(ConfigError, match=r"mesh\.fsdp"):
        MeshConfig(fsdp=0)


def test_help_lists_fields_and_values(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_overrides(run_config("out"), ["--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "--optim.lr" in said and "0.01" in said


def test_config_survives_json(tmp_path):
    config = run_config(tmp_path, model={"policy": Policy(dtype="bfloat16")}, steps=3)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert load_run_config(tmp_path, SYSTEM) == config


def test_folder_without_run_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="not a run directory"):
        load_run_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        load_run_config(tmp_path)


def test_configs_are_frozen_and_named():
    config = run_config("out")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3
    assert {"optim.lr", "model.frontend.sample_rate", "data.batch_size"} <= set(field_names(config))
