"""From a model's name to the object that does its task."""

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musicjax import registry
from musicjax.errors import ConfigError
from musicjax.tasks.choice import AUTO, choose
from musicjax.types import Policy

_TASKS = {  # System.task -> class
    "caption": "musicjax.tasks.caption:Captioner",
    "pitch": "musicjax.tasks.pitch:PitchTracker",
    "transcribe": "musicjax.tasks.transcribe:Transcriber",
}
_EVALUATIONS = {"caption": "caption"}  # modules; every other task is scored by its notes


def load(
    name: str | os.PathLike[str],
    *,
    task: str | None = None,
    device: str | None = None,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Any:
    """A model ready for its task, e.g. `load("onsets_frames.small").transcribe("song.flac")`.

    Args:
      name: `system.tag` as listed by `musicjax models`, the path of a .safetensors file, or "auto":
        the best transcriber that needs no download, as `musicjax.choose` finds it.
      task: what it is to be used for ("transcribe", "pitch", "caption"); None takes whatever the
        model does.
      device: "cpu", "gpu" or "cuda:1"; None takes all GPUs that there are, or else the CPU.
      policy: dtypes; None keeps the ones stored with the weights.
      progress: called with bytes there and bytes in all while weights are downloaded.
      settings: further arguments of the task's class (for a Transcriber window_s, batch_size; for
        a PitchTracker hop_ms and centred as well), and with "auto" those of `musicjax.choose`
        (instrument, pedals, bends, real_time).

    Compiled programs are kept in the cache folder (see `musicjax.infer.keep_compiled`). Raises
    ModelNotFoundError, WeightsError or ConfigError, each saying what to do.
    """
    from musicjax.hub import load_model
    from musicjax.infer import find_device, keep_compiled

    keep_compiled()
    chosen = None if device is None else find_device(device)
    if name == AUTO:
        if task not in (None, "transcribe"):
            raise ConfigError(f"auto chooses among transcribers; for {task!r} name a model.")
        wanted = inspect.signature(choose).parameters.keys() & settings.keys()
        name = choose(**{key: settings.pop(key) for key in wanted}).name
    known = registry.systems().get(os.fspath(name).split(".")[0])
    if task is not None and known is not None and not Path(name).exists():
        _check_task(os.fspath(name), known, task)  # before anything is fetched
    loaded = load_model(name, policy=policy, progress=progress)
    _check_task(loaded.name, loaded.system, task or loaded.system.task)
    task = loaded.system.task
    module, _, attribute = _TASKS[task].partition(":")
    return getattr(importlib.import_module(module), attribute)(loaded, device=chosen, **settings)


def _check_task(name: str, system: registry.System, task: str) -> None:
    """Raise ConfigError when a model is asked for what it does not do."""
    if system.task not in _TASKS:
        raise ConfigError(f"{name} does {system.task!r}; tasks known here: {', '.join(_TASKS)}.")
    if system.task != task:
        able = [s.name for s in registry.systems().values() if s.task == task]
        raise ConfigError(
            f"{name} does {system.task!r}, not {task!r}; {', '.join(sorted(able))} "
            f"{'does' if len(able) == 1 else 'do'}: `musicjax models` lists them."
        )


def evaluation(run: Any) -> Callable[[Any], dict[str, float]] | None:
    """The evaluation that a training run asks for, by the task of its system.

    `run` is a `musicjax.train.RunConfig`; None where it validates on nothing.
    """
    module = _EVALUATIONS.get(registry.find_system(run.system).task, "transcribe")
    return importlib.import_module(f"musicjax.tasks.{module}").evaluation(run)
