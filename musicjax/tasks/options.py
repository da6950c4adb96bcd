"""The options of a system's decoding: which there are, and what is said of any other."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from musicjax.errors import ConfigError
from musicjax.notes import check_values
from musicjax.registry import System


def decode_options(system: System) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a system's decoding."""
    parameters = inspect.signature(system.resolve("decode")).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(system: System, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name that the system's decoding does not take, or a value.

    To be asked before anything is heard.
    """
    known = decode_options(system)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)
            raise ConfigError(
                f"decoding of {system.name} has no option {name!r}; did you mean "
                f"{' or '.join(near)}?"
            )
    check_values(options)
