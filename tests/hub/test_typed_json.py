"""Configs to JSON and back: identical, checked, and open to older files."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from musicjax.errors import ConfigError
from musicjax.hub.typed_json import from_json, to_json
from musicjax.registry import systems


@dataclass(frozen=True)
class Inner:
    rate: float = 1.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (0.5, "x")
    names: dict[str, int] = field(default_factory=dict)
    on: bool = True
    words: str = ""


@pytest.mark.parametrize(
    "config",
    [Outer(), Outer(Inner(2.0, "b"), Inner(), (), (1.0, "y"), {"k": 3}, False, "w")],
)
def test_round_trip_through_text(config):
    assert from_json(Outer, json.loads(json.dumps(to_json(config)))) == config


def test_every_registered_config_survives():
    for system in systems().values():
        config = system.resolve("config")("tiny")
        assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config


def test_fields_that_an_older_file_lacks_keep_their_defaults():
    assert from_json(Outer, {"on": False}) == Outer(on=False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"iner": {}}, "inner"),
        ({"inner": {"kind": "c"}}, "config.inner.kind"),
        ({"on": 1}, "type bool"),
        ({"sizes": [1, "2"]}, r"sizes\[1\]"),
        ({"pair": [1.0]}, "2 values"),
        ({"other": 3}, "fields of Inner"),
        ({"sizes": 3}, "a list"),
    ],
)
def test_what_does_not_fit_is_named(data, words):
    with pytest.raises(ConfigError, match=words):
        from_json(Outer, data)


def test_values_without_a_json_form_are_refused():
    with pytest.raises(ConfigError, match="no JSON form"):
        to_json(Outer(words=object()))  # type: ignore[arg-type]
