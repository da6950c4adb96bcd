"""Frozen config dataclasses to plain JSON and back, so that a weights file rebuilds its model."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from musicjax.errors import ConfigError


def to_json(config: Any) -> Any:
    """A config as dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise ConfigError(
        f"a config holds {config!r} of type {type(config).__name__}, which has no JSON form; use "
        "numbers, strings, tuples, mappings and nested frozen dataclasses."
    )


def from_json(kind: Any, data: Any, where: str = "config") -> Any:
    """Build a value of annotated type `kind` from what `to_json` made.

    Fields that the data lacks keep their defaults, so that files of older versions load. Raises
    ConfigError for a field that the type does not have or a value of another type.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, data, where)
    if origin is typing.Literal:
        if data not in arguments:
            raise ConfigError(
                f"{where} is {data!r}; expected one of {', '.join(map(repr, arguments))}."
            )
        return data
    if kind is tuple or origin is tuple:
        _expect(isinstance(data, list), where, data, "a list")
        if not arguments:
            return tuple(data)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_json(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        _expect(len(data) == len(arguments), where, data, f"{len(arguments)} values")
        pairs = zip(arguments, data, strict=True)
        return tuple(from_json(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(pairs))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(data, dict), where, data, "a mapping")
        return {
            from_json(arguments[0], k, where): from_json(arguments[1], v, where)
            for k, v in data.items()
        }
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (bool, int, float, str):
        _expect(type(data) is kind, where, data, f"a value of type {kind.__name__}")
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, data, f"the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    unknown = [name for name in data if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else f"it has {', '.join(names)}"
        raise ConfigError(
            f"{where} has a field {unknown[0]!r} that {kind.__name__} does not know; {hint}? "
            "A file made by a newer musicjax needs that version."
        )
    return kind(**{name: from_json(hints[name], v, f"{where}.{name}") for name, v in data.items()})


def _union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    failures = []
    for option in options:
        if option is type(None):
            continue
        try:
            return from_json(option, data, where)
        except ConfigError as error:
            failures.append(str(error))
    raise ConfigError(failures[0])


def _expect(right: bool, where: str, data: Any, expected: str) -> None:
    if not right:
        raise ConfigError(f"{where} is {data!r}; expected {expected}.")
