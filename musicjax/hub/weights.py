"""One safetensors file holds a model: its arrays, and in its header the config that rebuilds it."""

import dataclasses
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from musicjax import registry
from musicjax.errors import ConfigError, ModelNotFoundError, OutputError, WeightsError
from musicjax.files import atomic_write
from musicjax.hub import cache
from musicjax.hub.download import fetch
from musicjax.hub.transfer import Progress
from musicjax.hub.typed_json import from_json, to_json
from musicjax.types import Policy
from musicjax.version import __version__

FORMAT = 1
_KEY = "musicjax"  # the header's one metadata entry of ours
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights. `card` is None for a file whose weights are of no card."""

    model: nnx.Module
    config: Any
    card: registry.Card | None
    name: str  # "system.tag", or the file's path
    system: registry.System


def save_weights(
    path: str | os.PathLike[str],
    model: nnx.Module | nnx.State,
    config: Any,
    *,
    system: str,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as one safetensors file that `load_model` can rebuild it from. Atomic.

    Parameters are stored in `dtype`; one whose values overflow it, and everything that is not a
    parameter (running means and variances), in float32. Dropout's random state is not stored.
    `extra` is any JSON (how it was trained, scores), read back by `read_header`.
    """
    if dtype not in _DTYPES:
        raise WeightsError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    state = model if isinstance(model, nnx.State) else nnx.state(model)
    arrays = {}
    for keys, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.RngState):
            wanted = _DTYPES[dtype] if isinstance(variable, nnx.Param) else np.float32
            arrays[_dotted(keys)] = _stored(np.asarray(variable.get_value()), wanted)
    header = {
        "format": FORMAT,
        "system": system,
        "config": to_json(config),
        "version": __version__,
        "extra": dict(extra or {}),
    }
    data = safetensors.numpy.save(arrays, metadata={_KEY: json.dumps(header)})
    with atomic_write(path) as file:
        file.write(data)


def _stored(array: np.ndarray, dtype: Any) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return np.ascontiguousarray(array)
    largest = np.abs(array.astype(np.float32)).max(initial=0.0)
    fits = largest <= float(ml_dtypes.finfo(dtype).max)
    return np.ascontiguousarray(array.astype(dtype if fits else np.float32))


def _dotted(keys: tuple[Any, ...]) -> str:
    return ".".join(str(key) for key in keys)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON that `save_weights` put into a file: format, system, config, version, extra.

    Raises WeightsError when the file is not there, is damaged, or was not written by musicjax.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; check the path.")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); copy or fetch it again."
        ) from error
    if _KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file, but not one that musicjax wrote, so that its model is "
            "not known; `musicjax convert` reads the public checkpoints of each system."
        )
    header = json.loads(metadata[_KEY])
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has weights format {header.get('format')!r} and this musicjax {__version__} "
            f"reads format {FORMAT}; use musicjax {header.get('version')}, which wrote it."
        )
    return header


def load_model(
    name: str | os.PathLike[str],
    *,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """A model with its weights, by name or by file.

    `name` is `system.tag`, `system` (its first tag), the path of a .safetensors file written by
    `save_weights`, or a folder: a training run's, or one that holds a single such file.
    Parameters are in the policy's `param_dtype`, float32 unless `policy` says otherwise. Weights
    are looked for inside the package, in the cache, in the mirror folder and at the card's
    address, in this order.
    Raises ModelNotFoundError for a name that does not exist and WeightsError for weights that
    cannot be had or do not fit.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_file() or path.is_dir() or path.suffix == ".safetensors" or len(path.parts) > 1:
        path = find_weights(path)
        model, config, system = _rebuild(path, policy)
        return LoadedModel(model, config, _card_of(path, system), str(path), system)
    system, tag, card = registry.find_card(text)
    full_name = f"{system.name}.{tag}"
    if card.source is None:
        known = importlib.util.find_spec(f"musicjax.models.{system.name}.convert") is not None
        published = (
            f"a checkpoint that its authors published is read by `musicjax convert CHECKPOINT --to "
            f"{full_name} -o {full_name}.safetensors`; or "
        )
        raise WeightsError(
            f"{full_name} is an architecture without weights at a known address; "
            f"{published if known else ''}train it with `musicjax train {system.name}`, or give "
            "the path of a .safetensors file."
        )
    path = _weights_of(card.source, system, progress)
    try:
        model, config, _ = _rebuild(path, policy)
    except WeightsError:
        if not card.source.converter:
            raise
        path.unlink(missing_ok=True)  # converted by another version, or damaged: once more
        model, config, _ = _rebuild(_weights_of(card.source, system, progress), policy)
    return LoadedModel(model, config, card, full_name, system)


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The weights file at a path: the file itself, or the one of a training run's folder.

    Raises ModelNotFoundError when there is nothing and WeightsError when there are several.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise ModelNotFoundError(
                f"there is no weights file {path}; give a .safetensors file or a name of "
                "`musicjax models`."
            )
        return path
    for name in ("best.safetensors", "final.safetensors"):  # what a training run leaves
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise WeightsError(
            f"the folder {path} should hold one .safetensors file and holds {len(files)} "
            f"({found}); give the file itself."
        )
    return files[0]


def _card_of(path: Path, system: registry.System) -> registry.Card | None:
    """The card whose very weights a file holds: its own file, or converted from it."""
    original = read_header(path)["extra"].get("source_sha256")
    size = path.stat().st_size
    for card in system.cards.values():
        if card.source is None or not card.source.sha256:
            continue
        same = size == card.source.size_bytes and cache.sha256_of(path) == card.source.sha256
        if same or original == card.source.sha256:
            return card
    return None


def _weights_of(
    source: registry.Source, system: registry.System, progress: Progress | None
) -> Path:
    """Where a source's weights lie in our own format: fetched, and converted once if foreign."""
    if not source.converter:
        return fetch(source, system=system.name, progress=progress)
    target = cache.converted_path(source)
    if _was_converted(target, source):
        return target
    cache.make_folder(target.parent)
    with cache.locked(target.with_name(f"{target.name}.lock")):
        if not _was_converted(target, source):  # by another process, while we waited
            original = fetch(source, system=system.name, progress=progress)
            _convert(original, target, source, system)
            if original == cache.cached_path(source):  # it has served; a mirror's file is not ours
                _remove(original)
    return target


def _remove(original: Path) -> None:
    if original.is_dir():
        shutil.rmtree(original, ignore_errors=True)
    else:
        original.unlink(missing_ok=True)


def _was_converted(target: Path, source: registry.Source) -> bool:
    try:
        return read_header(target)["extra"].get("source_sha256") == source.sha256
    except WeightsError:  # not there, or damaged
        return False


def _convert(
    original: Path, target: Path, source: registry.Source, system: registry.System
) -> None:
    module = importlib.import_module(f"musicjax.models.{system.name}.convert")
    model, config = getattr(module, source.converter)(original)
    extra = {"source": source.address, "source_sha256": source.sha256}
    try:
        save_weights(target, model, config, system=system.name, dtype="float32", extra=extra)
    except OutputError as error:
        cause = error.__cause__
        raise cache.no_room(target, cause if isinstance(cause, OSError) else error) from error


def _rebuild(path: Path, policy: Policy | None) -> tuple[nnx.Module, Any, registry.System]:
    header = read_header(path)
    system = registry.find_system(header["system"])
    kind = type(system.resolve("config")("tiny"))
    try:
        config = from_json(kind, header["config"])
    except ConfigError as error:
        raise WeightsError(f"{path} does not fit this musicjax: {error}") from error
    if policy is not None:
        config = dataclasses.replace(config, policy=policy)
    make = system.resolve("model")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); copy or fetch it again.") from error
    return nnx.merge(graph, _filled(abstract, arrays, path)), config, system


def _filled(abstract: nnx.State, arrays: dict[str, np.ndarray], path: Path) -> nnx.State:
    """The state with every leaf from the file; all that does not fit is reported at once."""
    faults, flat, unused = [], [], set(arrays)
    for keys, variable in nnx.to_flat_state(abstract):
        name, wanted = _dotted(keys), variable.get_value()
        if isinstance(variable, nnx.RngState):
            fresh = (
                jax.random.key(0) if isinstance(variable, nnx.RngKey) else jnp.zeros((), jnp.uint32)
            )
            flat.append((keys, variable.replace(fresh)))
            continue
        unused.discard(name)
        array = arrays.get(name)
        if array is None:
            faults.append(f"{name} {wanted.shape} is missing")
        elif array.shape != wanted.shape:
            faults.append(f"{name} is {array.shape}, the model has {wanted.shape}")
        else:
            flat.append((keys, variable.replace(jnp.asarray(array.astype(wanted.dtype)))))
    faults += [f"{name} is not in the model" for name in sorted(unused)]
    if faults:
        raise WeightsError(
            f"the weights of {path} do not fit their model in {len(faults)} places: "
            f"{'; '.join(faults)}."
        )
    return nnx.from_flat_state(flat)
