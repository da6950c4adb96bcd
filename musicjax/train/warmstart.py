"""Starting from weights that exist: what fits by path and shape is loaded, the rest is told."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from musicjax.errors import WeightsError
from musicjax.hub import load_model
from musicjax.registry import System
from musicjax.train.checkpoints import BEST, FINAL, checkpoint_model
from musicjax.train.config import load_run_config


@dataclass(frozen=True)
class LoadReport:
    """Paths of tensors taken from the source, left unused in it, and new in the model.

    A path whose shapes differ stands in both `left` and `new`, with both shapes.
    """

    source: str
    loaded: tuple[str, ...]
    left: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded"]
        for title, paths in (("left unused", self.left), ("new (random)", self.new)):
            if paths:
                lines.append(f"{title}, {len(paths)}:")
                lines += [f"  {path}" for path in paths]
        return "\n".join(lines)


@dataclass(frozen=True)
class Weights:
    """Tensors by dotted path, and what they are of: the system's name and the model's config."""

    tensors: dict[str, Array]
    system: str
    config: Any


def read_weights(source: str, system: System | None = None) -> Weights:
    """The weights in `system.tag`, a .safetensors file or a run directory.

    A run directory gives its best weights, else its final ones, else its newest checkpoint's;
    "RUN@STEP" gives the averaged weights of its checkpoint of that step. WeightsError if there is
    no such checkpoint.
    """
    path = Path(source)
    run, _, step = source.rpartition("@")
    if step.isdigit() and Path(run).is_dir() and not path.exists():
        config = load_run_config(run, system)
        model = checkpoint_model(run, config, step=int(step), system=system)
        return Weights(flat_variables(model), config.system, config.model)
    if path.is_dir():
        finished = [path / name for name in (BEST, FINAL) if (path / name).is_file()]
        if not finished:
            config = load_run_config(path, system)
            model = checkpoint_model(path, config, system=system)
            return Weights(flat_variables(model), config.system, config.model)
        source = os.fspath(finished[0])
    loaded = load_model(source)
    return Weights(flat_variables(loaded.model), loaded.system.name, loaded.config)


def adapted(weights: Weights, system: System, config: Any) -> dict[str, Array]:
    """The tensors as a model of `config` may start from them: those of another form of the same
    system are changed as it knows to."""
    if not system.adapt or weights.system != system.name or weights.config == config:
        return weights.tensors
    return system.resolve("adapt")(weights.tensors, weights.config, config)


def flat_variables(model: nnx.Module | nnx.State) -> dict[str, Array]:
    """A model's variables by dotted path."""
    state = model if isinstance(model, nnx.State) else nnx.state(model)
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def renamed(
    source: Mapping[str, Array | np.ndarray], pairs: Sequence[str]
) -> dict[str, Array | np.ndarray]:
    """The same tensors, those under a path THERE moved to HERE by pairs "THERE=HERE".

    Raises WeightsError for a path under which there is nothing.
    """
    tensors = dict(source)
    for pair in pairs:
        there, here = pair.split("=")
        inside = [path for path in tensors if f"{path}.".startswith(f"{there}.")]
        if not inside:
            parts = sorted({path.split(".")[0] for path in tensors})
            raise WeightsError(
                f"init_names has {pair!r}, but nothing in the weights is called {there!r}; their "
                f"parts are {', '.join(parts)}."
            )
        for path in inside:
            tensors[here + path[len(there) :]] = tensors.pop(path)
    return tensors


def load_matching(
    state: nnx.State, source: Mapping[str, Array | np.ndarray], name: str
) -> tuple[nnx.State, LoadReport]:
    """Replace the variables whose path and shape are in `source`, keeping dtype and layout.

    Raises WeightsError if nothing fits at all.
    """
    loaded, new, clash, changed = [], [], {}, []
    for path, variable in nnx.to_flat_state(state):
        key, here = ".".join(map(str, path)), variable[...]
        found = source.get(key)
        if found is None:
            new.append(key)
        elif found.shape != here.shape:
            clash[key] = f"{key} {found.shape} there, {here.shape} here"
            new.append(clash[key])
        else:
            loaded.append(key)
            variable = variable.replace(_like(found, here))
        changed.append((path, variable))
    if not loaded:
        raise WeightsError(
            f"none of the tensors of {name!r} fits this model by name and shape: choose weights "
            "of the same system and variant, or train without --init."
        )
    left = [clash.get(k, k) for k in source if k not in set(loaded)]
    report = LoadReport(name, tuple(loaded), tuple(left), tuple(new))
    return nnx.from_flat_state(changed), report


def _like(value: Any, here: Array) -> Array:
    return jax.device_put(value.astype(here.dtype), here.sharding)
