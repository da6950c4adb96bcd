"""T5X checkpoints without T5X and without TensorFlow: every layout read, two written.

A checkpoint is a folder `checkpoint_<step>`. Its content is one tree,

    {target: parameters, state: {step, param_states}, flax_mutables: …}

whose leaves are told here by their path, names joined by "/" as T5X prints them:
`target/encoder/layers_0/attention/query/kernel`. Layouts:

legacy  a file `checkpoint`, a Flax msgpack of {version, optimizer: tree}. An array is in it, or is
        described there by a TensorStore spec; then its zarr folder, the path joined by dots, stands
        beside the file. The spec's driver may be file, gfile or gcs with a dummy bucket: only its
        path counts, so that a checkpoint copied from a bucket reads from a disk.
orbax   a folder `state` with what Orbax writes, see `musicjax.hub.orbax`.

The formats are those of t5x/checkpoints.py (google-research/t5x). Nothing that is read is run.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from flax import nnx, serialization, traverse_util

from musicjax.errors import OutputError, WeightsError
from musicjax.hub import orbax, zarr
from musicjax.hub.convert import Rule, convert, misfits
from musicjax.hub.zarr import ZarrArray

Layout = Literal["legacy", "orbax"]

INDEX = "checkpoint"  # the msgpack of a checkpoint
VERSION = 3  # of the legacy layout; 2 kept bfloat16 as uint16, 0 is a plain Flax checkpoint
_SPEC = {"driver", "kvstore", "metadata"}
_IN_THE_INDEX = ("v_row", "v_col")  # Adafactor's factors, which T5X does not partition


@dataclass(frozen=True)
class T5XCheckpoint:
    """A T5X checkpoint: its leaves by path, with arrays described and not yet read.

    A leaf is a ZarrArray, a NumPy array or scalar that the index holds, None or an empty dict
    (slots that an optimizer leaves out). `faults` are phrases by path on what is wrong so far.
    """

    folder: Path
    layout: Layout
    leaves: Mapping[str, Any]
    faults: Mapping[str, str] = field(default_factory=dict)

    def part(self, prefix: str = "target") -> dict[str, Any]:
        """The leaves below one branch ("" for all), by their path within it."""
        return _below(self.leaves, prefix)

    def read(self, prefix: str = "") -> dict[str, Any]:
        """The leaves below one branch (all by default) with their values, by path within it.

        Raises one WeightsError with every fault of the index and of the arrays.
        """
        values, faults = self._values(prefix)
        if faults:
            raise WeightsError(_damage(self.folder, faults))
        return values

    def _values(self, prefix: str) -> tuple[dict[str, Any], list[str]]:
        wanted = self.part(prefix)
        stored = [leaf for leaf in wanted.values() if isinstance(leaf, ZarrArray)]
        values, wrong = zarr.read_arrays(stored)
        faults = [*_below(self.faults, prefix).values(), *wrong.values()]
        if faults:
            return {}, faults
        return {
            k: values[v.name][()] if isinstance(v, ZarrArray) else v for k, v in wanted.items()
        }, []


def _below(leaves: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    start = f"{prefix}/" if prefix else ""
    return {k.removeprefix(start): v for k, v in leaves.items() if k.startswith(start)}


def _damage(folder: Path, faults: Sequence[str]) -> str:
    places = "1 place" if len(faults) == 1 else f"{len(faults)} places"
    return (
        f"the T5X checkpoint {folder} is wrong in {places}: {'; '.join(faults)}. A damaged copy "
        "is mended by copying it again; weights of another model need that model."
    )


# --- reading ---------------------------------------------------------------------------------


def read_t5x(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The whole tree of a checkpoint: nested dicts with NumPy leaves, as T5X would restore it.

    `path` as for `open_t5x`. Raises one WeightsError with everything that is wrong with it.
    """
    return unflatten(open_t5x(path).read())


def open_t5x(path: str | os.PathLike[str]) -> T5XCheckpoint:
    """Find out what a checkpoint holds, without reading its arrays.

    path: the folder of a checkpoint, the file `checkpoint` in it, or a folder of several
    `checkpoint_<step>`, of which the newest is taken.
    Raises WeightsError when there is none, when its index is damaged, or when it is TensorFlow's.
    """
    folder = checkpoint_folder(path)
    state = folder / orbax.STATE if (folder / orbax.STATE).is_dir() else folder
    index = state / INDEX
    contents = read_index(index) if index.is_file() else {}
    aggregated = flatten(contents)
    if orbax.is_orbax(state, aggregated):
        leaves, faults = orbax.open_state(state, aggregated)
        inner = "_optimizer"  # the first ones hold the fields of T5X's TrainState
        if not any(name.startswith("target/") for name in leaves) and _below(leaves, inner):
            leaves, faults = _below(leaves, inner), _below(faults, inner)
        return T5XCheckpoint(folder, "orbax", leaves, faults)
    version = contents.get("version", 0)
    if version not in (0, 2, VERSION):
        raise WeightsError(f"{index} has version {version!r} of its layout; 2 and 3 are known.")
    tree = contents.get("optimizer", contents)
    if not isinstance(tree, dict) or "target" not in tree:
        raise WeightsError(
            f"{index} holds {', '.join(map(str, contents)) or 'nothing'}, not the target and "
            "state of a T5X model."
        )
    leaves, faults = _open_legacy(state, flatten(tree), version)
    return T5XCheckpoint(folder, "legacy", leaves, faults)


def is_t5x(path: str | os.PathLike[str]) -> bool:
    """Whether a path looks like a T5X checkpoint, by the names of its files alone."""
    try:
        checkpoint_folder(path)
    except WeightsError:
        return False
    return True


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the checkpoint that `open_t5x` means by `path`. WeightsError without one."""
    path = Path(path)
    if path.is_file() and path.name == INDEX:
        return path.parent
    if not path.is_dir():
        raise WeightsError(f"there is no folder {path} with a T5X checkpoint; check the path.")
    if any((path / name).is_file() for name in (INDEX, *orbax.FILES)):
        return path
    if any((path / orbax.STATE / name).is_file() for name in (INDEX, *orbax.FILES)):
        return path
    steps = {
        int(found[1]): folder
        for folder in path.iterdir()
        if (found := re.fullmatch(r"checkpoint_(\d+)", folder.name)) and folder.is_dir()
    }
    if not steps:
        raise WeightsError(
            f"{path} is not a T5X checkpoint: it has neither a file `checkpoint`, nor a folder "
            "`state` written by Orbax, nor a folder `checkpoint_<step>`."
        )
    newest = steps[max(steps)]
    if not any((newest / name).exists() for name in (INDEX, orbax.STATE)):
        raise WeightsError(f"{newest} is not a whole T5X checkpoint: it has no index.")
    return newest


def read_index(file: Path) -> dict[str, Any]:
    """The msgpack of a checkpoint, specs and all. WeightsError when it is damaged or not one."""
    data = file.read_bytes()
    if data.startswith(b"model_checkpoint_path"):
        raise WeightsError(
            f"{file} is the index of a TensorFlow checkpoint; T5X's own convert_tf_checkpoint "
            "turns it into one that can be read here."
        )
    try:
        contents = serialization.msgpack_restore(data)
    except Exception as error:  # damaged bytes can fail in any way
        raise WeightsError(
            f"{file} is truncated, damaged or no msgpack at all ({error}; it has {len(data):,} "
            "bytes). Copy or fetch it again."
        ) from error
    if not isinstance(contents, dict):
        raise WeightsError(f"{file} holds a {type(contents).__name__}, not a T5X checkpoint.")
    return contents


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, names joined by "/". TensorStore specs and empty dicts are leaves."""
    flat = traverse_util.flatten_dict(
        dict(tree), keep_empty_nodes=True, is_leaf=lambda _, value: _is_spec(value), sep="/"
    )
    return {k: {} if v is traverse_util.empty_node else v for k, v in flat.items()}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested form of what `flatten` made."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _SPEC


def _open_legacy(
    folder: Path, leaves: Mapping[str, Any], version: int
) -> tuple[dict[str, Any], dict[str, str]]:
    specs = {name: leaf for name, leaf in leaves.items() if _is_spec(leaf)}
    kvstores, faults = {}, {}
    for name, spec in specs.items():
        place = _place(spec)
        if place is None:
            faults[name] = f"{name} has a spec whose path does not lie in the checkpoint"
        else:
            kvstores[name] = {"driver": "file", "path": f"{folder.absolute() / place}/"}
    arrays, wrong = zarr.open_arrays(kvstores, bfloat16_bits=version == 2)
    faults |= wrong
    for name, spec in specs.items():
        told = spec["metadata"].get("shape") if isinstance(spec["metadata"], dict) else None
        shape = tuple(told) if isinstance(told, list | tuple) else ()
        array = arrays.setdefault(name, ZarrArray(name, shape, np.dtype(np.float32)))
        if told is not None and shape != array.shape:
            faults[name] = f"{name} is {shape} in the index and {array.shape} in its folder"
    return {name: arrays.get(name, leaf) for name, leaf in leaves.items()}, faults


def _place(spec: Mapping[str, Any]) -> PurePosixPath | None:
    """The relative folder of a spec, whatever its driver; None when it leads out of the folder."""
    store = spec["kvstore"]
    if isinstance(store, str):  # as an address: gs://t5x-dummy-bucket/path/, file://path/
        scheme, _, path = store.partition("://")
        path = path.partition("/")[2] if scheme == "gs" else path
    else:
        path = str(store.get("path", "")) if isinstance(store, dict) else ""
    place = PurePosixPath(path) / str(spec.get("path", ""))  # before TensorStore 0.1.14: beside it
    inside = place.parts and not place.is_absolute() and ".." not in place.parts
    return place if inside else None


# --- writing ---------------------------------------------------------------------------------


def write_t5x(
    directory: str | os.PathLike[str], tree: Mapping[str, Any], *, layout: Layout = "legacy"
) -> Path:
    """Write a state so that T5X resumes from it, as the folder `directory/checkpoint_<step>`.

    tree: {target, state: {step, param_states}} with NumPy or jax leaves, as `read_t5x` gives it;
    dtypes are kept. What T5X keeps inside its index stays there: scalars, slots of shape (1,) and
    Adafactor's factors. Returns the folder.
    Raises WeightsError for a tree without target or step, and OutputError when the checkpoint is
    there already or the disk does not take it.
    """
    leaves = {name: _plain(leaf) for name, leaf in flatten(tree).items()}
    step = leaves.get("state/step")
    if not isinstance(step, int | np.integer) or not _below(leaves, "target"):
        raise WeightsError(
            "a T5X checkpoint is a tree with parameters under `target` and a whole number at "
            f"`state/step`; this one has {', '.join(map(str, tree)) or 'nothing'}."
        )
    directory = Path(directory)
    folder = directory / f"{orbax.STEP_PREFIX}_{int(step)}"
    if folder.exists():
        raise OutputError(f"Cannot write '{folder}': it is there already. Remove it first.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if layout == "orbax":
            orbax.write_step(directory, int(step), unflatten(leaves))
        else:
            _write_legacy(folder, leaves)
    except OSError as error:
        raise OutputError(f"Cannot write '{folder}': {error.strerror or error}.") from error
    return folder


def _plain(leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, dict | str | np.ndarray):
        return leaf
    return np.asarray(leaf)[()]


def _write_legacy(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Written beside its place and renamed, so that nobody meets half a checkpoint."""
    stored = {
        name: leaf
        for name, leaf in leaves.items()
        if isinstance(leaf, np.ndarray)
        and leaf.shape != (1,)
        and name.rpartition("/")[2] not in _IN_THE_INDEX
    }
    part = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    part.mkdir()
    specs = zarr.write_arrays(part, {k.replace("/", "."): v for k, v in stored.items()})
    index = {k: specs[k.replace("/", ".")] if k in stored else v for k, v in leaves.items()}
    tree = {"version": VERSION, "optimizer": unflatten(index)}
    data = serialization.msgpack_serialize(tree, in_place=True)  # which keeps the order of keys
    (part / INDEX).write_bytes(data)
    part.rename(folder)


# --- into a model ----------------------------------------------------------------------------


def fill(
    checkpoint: T5XCheckpoint,
    model_state: nnx.State,
    rules: Sequence[Rule],
    *,
    ignore: Mapping[str, str] | None = None,
) -> nnx.State:
    """The state of a model, filled from the parameters of a checkpoint by a table of rules.

    As `musicjax.hub.convert.convert`; the source names are paths below `target`. All is judged
    before anything large is read: one WeightsError tells what the folder lacks, what of it does
    not fit the model, and what the model lacks.
    """
    target = {k: v for k, v in checkpoint.part("target").items() if hasattr(v, "shape")}
    hollow = {name: _hollow(leaf) for name, leaf in target.items()}
    wrong = misfits(hollow, model_state, rules, ignore=ignore)
    if wrong:
        stored = [leaf for leaf in target.values() if isinstance(leaf, ZarrArray)]
        missing = [phrase for array in stored if (phrase := array.missing_chunks())]
        faults = [*_below(checkpoint.faults, "target").values(), *missing, *wrong]
        raise WeightsError(_damage(checkpoint.folder, faults))
    values = checkpoint.read("target")
    return convert({name: values[name] for name in target}, model_state, rules, ignore=ignore)


def _hollow(leaf: Any) -> np.ndarray:
    """An array of a leaf's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
