"""What the recipes in `configs/` have in common: finding a variant, and the run called tiny."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from musicjax.data.pipeline import DataConfig
from musicjax.errors import ConfigError
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig


def find_recipe(
    system: str, variant: str, recipes: Mapping[str, Callable[[], RunConfig]]
) -> RunConfig:
    """The run of a system's variant. Raises ConfigError, which lists the variants, for another."""
    if variant not in recipes:
        raise ConfigError(f"{system} has no recipe {variant!r}; there are {', '.join(recipes)}.")
    return recipes[variant]()


def tiny_run(
    system: str, model: Any, clip_s: float, *, optim: Mapping[str, Any] | None = None, **data: Any
) -> RunConfig:
    """A hundred steps on what the built-in composer plays on the built-in piano: no file needed.

    `model` is the system's config at its tiny size. `optim` and `data` change fields of the
    `OptimConfig` and of the `DataConfig`.
    """
    heard = DataConfig(train=("composer:",), valid=("composer:",), clip_s=clip_s, batch_size=4)
    return RunConfig(
        system=system,
        variant="tiny",
        model=model,
        data=replace(heard, **data),
        optim=replace(OptimConfig(lr=3e-3, warmup_steps=10), **(optim or {})),
        checkpoint=CheckpointConfig(save_every=50),
        steps=100,
        eval_every=100,
        log_every=10,
        output=f"runs/{system}-tiny",
    )
