"""The values that options of decoding can have, told by their names in every system alike."""

from collections.abc import Mapping
from typing import Any

from musicjax.errors import ConfigError


def check_values(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of decoding that cannot work; None stands for a default.

    Activations are probabilities: a `…_threshold`, and a `…_fall`, which is a part of one, lie
    within 0..1. A `min_duration_s` and a `…_worth` are no less than 0. Other names pass.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name.endswith(("_threshold", "_fall")) and not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}; expected 0 to 1.")
        if (name == "min_duration_s" or name.endswith("_worth")) and not value >= 0:
            raise ConfigError(f"{name} is {value}; expected 0 or more.")
