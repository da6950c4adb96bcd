"""From a model's name to the object that does its task."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from musicjax.errors import ConfigError
from musicjax.types import Policy

_TASKS = {"transcribe": "musicjax.tasks.transcribe:Transcriber"}  # System.task -> class


def load(
    name: str | os.PathLike[str],
    *,
    device: str | None = None,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Any:
    """A model ready for its task, e.g. `load("onsets_frames.small").transcribe("song.flac")`.

    Args:
      name: `system.tag` as listed by `musicjax models`, or the path of a .safetensors file.
      device: "cpu", "gpu" or "cuda:1"; None takes the one that jax prefers.
      policy: dtypes; None keeps the ones stored with the weights.
      progress: called with bytes there and bytes in all while weights are downloaded.
      settings: further arguments of the task's class (for a Transcriber window_s, batch_size).

    Compiled programs are kept in the cache folder (see `musicjax.infer.keep_compiled`). Raises
    ModelNotFoundError, WeightsError or ConfigError, each saying what to do.
    """
    from musicjax.hub import load_model
    from musicjax.infer import find_device, keep_compiled

    keep_compiled()
    chosen = find_device(device)
    loaded = load_model(name, policy=policy, progress=progress)
    task = loaded.system.task
    if task not in _TASKS:
        raise ConfigError(f"{loaded.name} does {task!r}; tasks known here: {', '.join(_TASKS)}.")
    module, _, attribute = _TASKS[task].partition(":")
    return getattr(importlib.import_module(module), attribute)(loaded, device=chosen, **settings)
