"""The state that T5X saves through Orbax: one OCDBT store, or one zarr folder an array.

`_METADATA` is a JSON of the leaves: `tree_metadata` maps each to its keys (`key_metadata`) and to
what it is (`value_metadata`). An array's place is its path joined by dots, inside the store that
`manifest.ocdbt` opens, or as a folder where there is no such file. Checkpoints before `_METADATA`
have a msgpack instead, in which an array is "PLACEHOLDER://" and its place.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicjax.errors import OutputError, WeightsError
from musicjax.hub import zarr

PLACEHOLDER = "PLACEHOLDER://"
STATE = "state"  # the item of a step that holds the model and its optimizer
STEP_PREFIX = "checkpoint"
FILES = ("_METADATA", "manifest.ocdbt")  # either says that a folder is Orbax's


def is_orbax(state: Path, aggregated: Mapping[str, Any]) -> bool:
    """Whether a folder, whose msgpack has these leaves, was written by Orbax."""
    if any((state / name).is_file() for name in FILES):
        return True
    return any(isinstance(v, str) and v.startswith(PLACEHOLDER) for v in aggregated.values())


def open_state(state: Path, aggregated: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves by path, and phrases on what is wrong with some of them, by path too.

    aggregated: the leaves of the msgpack `checkpoint` beside the arrays, empty where there is none.
    Raises WeightsError when `_METADATA` cannot be read.
    """
    leaves: dict[str, Any] = {}
    places: dict[str, str] = {}
    faults: dict[str, str] = {}
    described = _described(state / "_METADATA")
    if not described and not aggregated:
        raise WeightsError(f"{state} has no _METADATA that names its arrays. Copy it again.")
    for path, kind in described.items():
        kept = aggregated.get(path)
        if isinstance(kept, str) and kept.startswith(PLACEHOLDER):
            kept = None
        if kind == "None":
            leaves[path] = None
        elif kind in ("Dict", "List", "Tuple", "NamedTuple"):  # empty ones
            leaves[path] = {}
        elif kind == "string":
            faults[path] = f"{path} is a text, which no T5X state has"
        elif kept is not None:
            leaves[path] = kept
        else:
            places[path] = path.replace("/", ".")
    if not described:
        for path, leaf in aggregated.items():
            if isinstance(leaf, str) and leaf.startswith(PLACEHOLDER):
                places[path] = leaf.removeprefix(PLACEHOLDER)
            else:
                leaves[path] = leaf
    safe = {path: place for path, place in places.items() if "/" not in place and place != ".."}
    faults |= {path: f"{path} lies outside the folder" for path in places.keys() - safe.keys()}
    arrays, wrong = zarr.open_arrays({p: _kvstore(state, place) for p, place in safe.items()})
    return leaves | arrays, faults | wrong


def _kvstore(state: Path, place: str) -> dict[str, Any]:
    if not (state / "manifest.ocdbt").is_file():
        return {"driver": "file", "path": f"{state.absolute() / place}/"}
    base = {"driver": "file", "path": f"{state.absolute()}/"}
    return {"driver": "ocdbt", "base": base, "path": f"{place}/"}


def _described(file: Path) -> dict[str, str]:
    """What each leaf is, by path; empty when the checkpoint is older than this file."""
    if not file.is_file():
        return {}
    try:
        metadata = json.loads(file.read_bytes())
        if metadata.get("use_zarr3"):
            raise WeightsError(f"{file.parent} is stored as zarr 3, which T5X never writes.")
        return {
            "/".join(str(key["key"]) for key in entry["key_metadata"]): str(
                entry["value_metadata"]["value_type"]
            )
            for entry in metadata["tree_metadata"].values()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{file} is not the description of an Orbax checkpoint, or a damaged one ({error!r}). "
            "Copy or fetch it again."
        ) from error


def write_step(directory: Path, step: int, tree: Mapping[str, Any]) -> None:
    """Write `directory/checkpoint_<step>` as T5X's Orbax manager does, through Orbax itself.

    Raises OutputError when the disk does not take it.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        step_prefix=STEP_PREFIX, enable_async_checkpointing=False
    )
    handlers = {STATE: ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    try:
        with ocp.CheckpointManager(
            directory.absolute(), options=options, item_handlers=handlers
        ) as manager:
            item = ocp.args.PyTreeSave(tree)
            manager.save(step, args=ocp.args.Composite(**{STATE: item}), force=True)
    except (ValueError, OSError) as error:
        raise OutputError(f"Cannot write the checkpoint in '{directory}': {error}.") from error
