"""Folders in the layout of Hugging Face transformers: `config.json` and weights beside it.

Weights are `model.safetensors`, or several files with an index, or `pytorch_model.bin` in the same
two forms; the latter are read without torch and without running what is in them.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from musicjax.errors import WeightsError
from musicjax.hub.pytorch import read_state_dict
from musicjax.hub.transformers_layouts import transformer_from
from musicjax.nn.transformer import Transformer
from musicjax.types import Policy

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read


@dataclass(frozen=True)
class Pretrained:
    """What a folder holds: arrays by name, and its config.json."""

    weights: dict[str, np.ndarray]
    description: dict[str, Any]


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one of transformers, by the names of its files alone."""
    folder = Path(path)
    names = [name for weights in _WEIGHTS for name in (weights, f"{weights}.index.json")]
    return (folder / "config.json").is_file() and any((folder / n).is_file() for n in names)


def load_transformer(
    path: str | os.PathLike[str],
    *,
    policy: Policy = Policy(),  # noqa: B008 - frozen
) -> Transformer:
    """The Transformer in a folder: T5, BART, RoBERTa or BERT, as config.json says.

    Raises WeightsError for a folder that `read_pretrained` refuses, for another family, and with
    everything at once that does not fit.
    """
    found = read_pretrained(path)
    return transformer_from(found.weights, found.description, policy=policy)


def read_pretrained(path: str | os.PathLike[str]) -> Pretrained:
    """Config and weights of a folder.

    Raises WeightsError when one is missing or damaged; of several weights files one error names
    everything that is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}; check the path.")
    description = _json(folder / "config.json")
    for name in _WEIGHTS:
        if (folder / f"{name}.index.json").is_file():
            return Pretrained(_sharded(folder / f"{name}.index.json"), description)
        if (folder / name).is_file():
            return Pretrained(_tensors(folder / name), description)
    has = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
    raise WeightsError(f"{folder} has neither {' nor '.join(_WEIGHTS)}; it has {has}.")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WeightsError(f"{file.parent} has no {file.name}; it belongs to the weights.")
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{file} is damaged ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{file} holds a {type(found).__name__}, not a JSON object.")
    return found


def _tensors(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".bin":
        return read_state_dict(file)
    try:
        return safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is not a whole safetensors file ({error}); fetch it again."
        ) from error


def _sharded(index: Path) -> dict[str, np.ndarray]:
    places = _json(index).get("weight_map")
    plain = isinstance(places, dict) and all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    )
    if not plain or not places:
        raise WeightsError(f"{index} has no weight_map from tensors to files beside it.")
    wanted = sorted(set(places.values()))
    there = [name for name in wanted if (index.parent / name).is_file()]
    faults = [f"the file {name} is missing" for name in wanted if name not in there]
    weights: dict[str, np.ndarray] = {}
    for name in there:
        try:
            found = _tensors(index.parent / name)
        except WeightsError as error:
            faults.append(str(error).rstrip("."))
            continue
        lost = [t for t, file in places.items() if file == name and t not in found]
        faults += [f"{tensor} is not in {name}" for tensor in lost]
        weights |= found
    if faults:
        raise WeightsError(
            f"the weights of {index.parent} are incomplete in {len(faults)} places: "
            f"{'; '.join(faults)}. Fetch them again."
        )
    return weights
