"""PyTorch checkpoints without PyTorch, and without running what they contain.

A `.pt` or `.pth` file is a Python pickle, and a pickle can name any function and have it called.
The reader here knows the dozen names that tensors and dictionaries need; any other name ends the
reading with a WeightsError that tells the name, before anything of that name is imported. Both
layouts are read: the zip archive of torch 1.6 and later, and the stream before it.
"""

import collections
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from musicjax.errors import WeightsError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older layout
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_WELL_KNOWN = ("state_dict", "model_state_dict", "model", "model_state", "net", "params")


@dataclass(frozen=True)
class _StorageType:
    """Stands for a torch storage class: the dtype of its numbers."""

    dtype: str

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize

    def numbers(self, data: bytes) -> np.ndarray:
        if self.dtype == _BFLOAT16:  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, self.dtype)


class _Storage:
    """Numbers that tensors look into. The older layout delivers them after the tensors."""

    def __init__(self, kind: _StorageType, count: int, data: np.ndarray | None = None):
        self.kind = kind
        self.count = count
        self.data = data


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, not yet looked up."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        data = self.storage.data
        if data is None:
            raise WeightsError("a tensor has no storage in the file; it is damaged.")
        size = math.prod(self.shape)
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        negative = min((self.offset, *self.shape, *self.strides)) < 0
        if negative or (size and self.offset + reach >= len(data)):
            raise WeightsError(
                f"a tensor of shape {self.shape} reaches outside its storage of {len(data)} "
                "numbers; the file is damaged."
            )
        if size > max(len(data), 1 << 20):  # stride 0 can repeat one number a trillion times
            raise WeightsError(
                f"a tensor of shape {self.shape} repeats a storage of {len(data)} numbers; "
                "these are not weights."
            )
        strides = [s * data.itemsize for s in self.strides]
        window = data[self.offset :] if size else data[:0]
        return np.array(np.lib.stride_tricks.as_strided(window, self.shape, strides))


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_unused: Any
) -> "_Tensor":
    whole = isinstance(storage, _Storage) and isinstance(offset, int)
    for numbers in (shape, strides):
        whole = whole and isinstance(numbers, tuple) and all(isinstance(n, int) for n in numbers)
    if not whole or len(shape) != len(strides):
        raise WeightsError("a tensor is described by something else than numbers; not weights.")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_unused: Any) -> Any:
    return tensor


class _Record:
    """What is read of an object whose class is not imported: its attributes, as data."""

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
} | {
    (module, name): _StorageType(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
}


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and tensors; refuses every other name."""

    def __init__(
        self,
        file: BinaryIO,
        load_storage: Callable[[_StorageType, str, int], _Storage] | None,
        records: Sequence[str],
        path: Path,
    ):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage
        self._records = tuple(records)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        full = f"{module}.{name}"
        if self._records and full.startswith(self._records):
            return _Record
        raise WeightsError(
            f"{self._path} wants {full} to be imported and called, which weights do not need; "
            "nothing was run. Save only tensors: torch.save(model.state_dict(), path)."
        )

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and pid[0] == "module":  # a class with its source text
            return pid[1]
        storage = isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
        if not storage or self._load_storage is None or not isinstance(pid[1], _StorageType):
            raise WeightsError(f"{self._path} refers to {pid!r:.80}, which is no tensor storage.")
        kind, key, count = pid[1], str(pid[2]), pid[4]
        storage = self._load_storage(kind, key, count)
        if len(pid) > 5 and pid[5] is not None:  # the older layout's view into a storage
            raise WeightsError(f"{self._path} has views of storages; save it with torch >= 1.0.")
        return storage


def read_checkpoint(path: str | os.PathLike[str], *, records: Sequence[str] = ()) -> Any:
    """What `torch.load` would return, with NumPy arrays for tensors.

    bfloat16 becomes float32, all else keeps its dtype; strided and shared storages come out as
    arrays of their own. `records`: beginnings of class names whose objects are read as plain
    attributes, without importing the class (`("torch.nn.modules.",)` for a pickled module).
    Raises WeightsError when the file is missing, damaged, big endian, or names anything that
    weights do not need.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the PyTorch checkpoint itself, a file.")
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}; check the path.")
    try:
        if zipfile.is_zipfile(path):
            return _arrays(_read_zip(path, records))
        return _arrays(_read_stream(path, records))
    except WeightsError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise WeightsError(
            f"{path} is not a PyTorch checkpoint, or a damaged one ({error}); fetch it again."
        ) from error


def _read_zip(path: Path, records: Sequence[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise WeightsError(
                f"{path} is a zip archive without a data.pkl: not a torch.save file."
            )
        root = names[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise WeightsError(f"{path} was written on a big-endian machine; save it on another.")
        loaded: dict[str, _Storage] = {}

        def load_storage(kind: _StorageType, key: str, count: int) -> _Storage:
            if key not in loaded:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise WeightsError(f"{path} holds compressed tensors; torch writes them plain.")
                data = archive.read(entry)
                if len(data) < count * kind.itemsize:
                    raise WeightsError(f"{path} is truncated: storage {key} is too short.")
                numbers = kind.numbers(data[: count * kind.itemsize])
                loaded[key] = _Storage(kind, count, numbers)
            return loaded[key]

        with archive.open(names[0]) as file:
            return _Unpickler(io.BytesIO(file.read()), load_storage, records, path).load()


def _read_stream(path: Path, records: Sequence[str]) -> Any:
    waiting: dict[str, _Storage] = {}

    def load_storage(kind: _StorageType, key: str, count: int) -> _Storage:
        return waiting.setdefault(key, _Storage(kind, count))

    with path.open("rb") as file:
        if _Unpickler(file, None, (), path).load() != _LEGACY_MAGIC:
            raise WeightsError(f"{path} is not a PyTorch checkpoint.")
        _Unpickler(file, None, (), path).load()  # the layout's version
        system = _Unpickler(file, None, (), path).load()
        if not system.get("little_endian", True):
            raise WeightsError(f"{path} was written on a big-endian machine; save it on another.")
        tree = _Unpickler(file, load_storage, records, path).load()
        for key in _Unpickler(file, None, (), path).load():
            storage = waiting.get(str(key))
            (count,) = struct.unpack("<q", file.read(8))
            if storage is None or count < 0:
                raise WeightsError(f"{path} is damaged: storage {key} belongs to no tensor.")
            data = file.read(count * storage.kind.itemsize)
            if len(data) < count * storage.kind.itemsize:
                raise WeightsError(f"{path} is truncated: storage {key} is too short.")
            storage.data = storage.kind.numbers(data)
    return tree


def _arrays(tree: Any, seen: tuple[int, ...] = ()) -> Any:
    """The tree with tensors looked up; a pickled module becomes the dictionary of its tensors."""
    if isinstance(tree, _Tensor):
        return tree.array()
    if id(tree) in seen:  # a module may point back at its parent
        return None
    seen = (*seen, id(tree))
    if isinstance(tree, _Record):
        own = tree.__dict__
        parts = [own.get(name) or {} for name in ("_parameters", "_buffers", "_modules")]
        if any(parts):
            return {str(k): _arrays(v, seen) for p in parts for k, v in p.items() if v is not None}
        return {k: _arrays(v, seen) for k, v in own.items()}
    if isinstance(tree, Mapping):
        return {key: _arrays(value, seen) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_arrays(value, seen) for value in tree)
    return tree


def read_state_dict(
    path: str | os.PathLike[str], entry: str = "", *, records: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name: a state dict, one inside a larger checkpoint, or a
    pickled module (with `records`, see `read_checkpoint`). Nested names are joined by dots.

    `entry` says where to look, as a dotted path; without it, the file itself or its one entry
    that holds tensors, or the one with a usual name (state_dict, model, …).
    Raises WeightsError as `read_checkpoint`, and when there are several or no such entries.
    """
    tree = read_checkpoint(path, records=records)
    for step in entry.split(".") if entry else ():
        if not isinstance(tree, Mapping) or step not in tree:
            has = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise WeightsError(f"{path} has no entry {entry!r}; there is: {has}.")
        tree = tree[step]
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not named tensors.")
    if not entry and not any(isinstance(value, np.ndarray) for value in tree.values()):
        holds = {str(k): v for k, v in tree.items() if isinstance(v, Mapping) and _flat(v)}
        usual = [name for name in _WELL_KNOWN if name in holds]
        if len(holds) == 1 or usual:
            modules = len(holds) == len(tree) > 1  # a module's children, not a checkpoint's entries
            tree = tree if modules and not usual else holds[(usual or list(holds))[0]]
    flat = _flat(tree)
    if not flat:
        raise WeightsError(f"{path} holds no tensors; it has: {', '.join(map(str, tree))}.")
    return flat


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, np.ndarray):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
    return flat
