"""One trainer for every system: typed configuration, sharded steps, exact resume, readable logs.

>>> from musicjax.configs.onsets_frames import get_config
>>> from musicjax.train import train
>>> train(get_config("tiny"))

Each name is imported when it is first used, so that reading a configuration stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicjax.train.checkpoints import export_checkpoint as export_checkpoint
    from musicjax.train.config import CheckpointConfig as CheckpointConfig
    from musicjax.train.config import MeshConfig as MeshConfig
    from musicjax.train.config import OptimConfig as OptimConfig
    from musicjax.train.config import RunConfig as RunConfig
    from musicjax.train.config import load_run_config as load_run_config
    from musicjax.train.config import parse_overrides as parse_overrides
    from musicjax.train.loop import train as train

_EXPORTS = {
    "RunConfig": "config",
    "OptimConfig": "config",
    "MeshConfig": "config",
    "CheckpointConfig": "config",
    "parse_overrides": "config",
    "load_run_config": "config",
    "export_checkpoint": "checkpoints",
    "train": "loop",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"musicjax.train.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'musicjax.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
