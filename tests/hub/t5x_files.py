"""T5X checkpoints written byte for byte, by none of the libraries that read them.

The index is packed here by the msgpack specification, with Flax's extensions 1 (array) and 3
(scalar) for [shape, dtype, bytes]; an array's folder is `.zarray` and one gzip or raw file a chunk,
edge chunks filled up to whole ones.
"""

import gzip
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
GZIP = {"id": "gzip", "level": 1}


def packed(value: Any) -> bytes:
    """One value as msgpack; NumPy arrays and scalars as Flax's extensions."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if value < 128:
            return struct.pack("B", value)
        kinds = [(1 << 8, ">BB", 0xCC), (1 << 16, ">BH", 0xCD), (1 << 32, ">BI", 0xCE)]
        return next(struct.pack(form, byte, value) for limit, form, byte in kinds if value < limit)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), 32, 0xA0, 0xD9, 0xDA, 0xDB) + data
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, 0xC4, 0xC5, 0xC6) + value
    if isinstance(value, list):
        return _head(len(value), 16, 0x90, 0, 0xDC, 0xDD) + b"".join(map(packed, value))
    if isinstance(value, dict):
        inside = b"".join(packed(key) + packed(item) for key, item in value.items())
        return _head(len(value), 16, 0x80, 0, 0xDE, 0xDF) + inside
    array = np.asarray(value)
    data = packed([list(array.shape), array.dtype.name, array.tobytes()])
    kind = 3 if isinstance(value, np.generic) else 1
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
    head = (
        struct.pack("B", fixed[len(data)])
        if len(data) in fixed
        else _head(len(data), 0, 0, 0xC7, 0xC8, 0xC9)
    )
    return head + struct.pack("B", kind) + data


def _head(size: int, few: int, small: int, byte: int, word: int, double: int) -> bytes:
    if size < few:
        return struct.pack("B", small | size)
    if byte and size < 1 << 8:
        return struct.pack(">BB", byte, size)
    if size < 1 << 16:
        return struct.pack(">BH", word, size)
    return struct.pack(">BI", double, size)


def zarr_files(
    array: np.ndarray, chunks: tuple[int, ...] | None = None, compressor: dict | None = GZIP
) -> dict[str, bytes]:
    """`.zarray` and the chunks of an array, by file name."""
    chunks = array.shape if chunks is None else chunks
    dtype = "bfloat16" if array.dtype == BFLOAT16 else array.dtype.newbyteorder("<").str
    description = {
        "chunks": list(chunks),
        "compressor": compressor,
        "dtype": dtype,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    files = {".zarray": json.dumps(description).encode()}
    counts = [-(-n // c) for n, c in zip(array.shape, chunks, strict=True)]
    for index in itertools.product(*map(range, counts)):
        corner = [i * c for i, c in zip(index, chunks, strict=True)]
        part = array[tuple(slice(o, o + c) for o, c in zip(corner, chunks, strict=True))]
        whole = np.zeros(chunks, array.dtype)
        whole[tuple(slice(n) for n in part.shape)] = part
        data = whole.tobytes()
        name = ".".join(map(str, index)) or "0"
        files[name] = gzip.compress(data, 1, mtime=0) if compressor else data
    return files


def put_zarr(folder: Path, array: np.ndarray, **how: Any) -> None:
    """An array as a zarr folder."""
    folder.mkdir(parents=True)
    for name, data in zarr_files(array, **how).items():
        (folder / name).write_bytes(data)


def spec(
    name: str,
    array: np.ndarray,
    driver: str = "file",
    chunks: tuple[int, ...] | None = None,
    compressor: dict | None = GZIP,
) -> dict:
    """What the index says of an array; `driver` is file, gfile, gcs, or gcs before 0.1.14."""
    chunks = array.shape if chunks is None else chunks
    dtype = "uint16" if array.dtype == np.uint16 else array.dtype.name
    metadata = {"chunks": list(chunks), "compressor": compressor, "shape": list(array.shape)}
    if driver == "address":
        store: Any = f"gs://t5x-dummy-bucket/{name}/"
    elif driver.startswith("gcs"):
        store = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{name}/"}
    else:
        store = {"driver": driver, "path": f"{name}/"}
    found = {"driver": "zarr", "dtype": dtype, "kvstore": store, "metadata": metadata}
    if driver == "gcs, old":
        del store["path"]
        found["path"] = name
    return found


def leaves(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by path; empty dicts and None are leaves."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found


def nested(flat: dict[str, Any]) -> dict:
    """The nested form of leaves by path."""
    tree: dict = {}
    for path, value in flat.items():
        *branch, leaf = path.split("/")
        node = tree
        for key in branch:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def inline(path: str, leaf: Any) -> bool:
    """Whether T5X keeps a leaf in the index: what is not partitioned over a mesh."""
    apart = isinstance(leaf, np.ndarray) and leaf.shape != (1,)
    return not apart or path.rpartition("/")[2] in ("v_row", "v_col")


def write_legacy(
    folder: Path,
    tree: dict,
    *,
    driver: str = "file",
    version: int = 3,
    chunks: dict[str, tuple[int, ...]] | None = None,
    compressor: dict | None = GZIP,
    all_inline: bool = False,
) -> Path:
    """A checkpoint of the msgpack layout."""
    folder.mkdir(parents=True)
    index = {}
    for path, leaf in leaves(tree).items():
        index[path] = leaf
        if not inline(path, leaf) and not all_inline:
            name = path.replace("/", ".")
            how = {"chunks": (chunks or {}).get(path), "compressor": compressor}
            put_zarr(folder / name, leaf, **how)
            index[path] = spec(name, leaf, driver, **how)
    contents = {"version": version, "optimizer": nested(index)}
    (folder / "checkpoint").write_bytes(packed(contents))
    return folder


def write_orbax(folder: Path, tree: dict, *, ocdbt: bool = True) -> Path:
    """A checkpoint of the Orbax layout: `_METADATA` and one store, or a folder an array."""
    state = folder / "state"
    state.mkdir(parents=True)
    (folder / "dataset").mkdir()
    entries, files = {}, {}
    for path, leaf in leaves(tree).items():
        keys = path.split("/")
        kind = "None" if leaf is None else "Dict" if isinstance(leaf, dict) else "jax.Array"
        kind = "scalar" if isinstance(leaf, np.generic) else kind
        entries[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": kind, "skip_deserialize": kind in ("None", "Dict")},
        }
        if kind in ("jax.Array", "scalar"):
            for name, data in zarr_files(np.asarray(leaf)).items():
                files[f"{path.replace('/', '.')}/{name}"] = data
    metadata = {"tree_metadata": entries, "use_zarr3": False}
    (state / "_METADATA").write_text(json.dumps(metadata))
    if ocdbt:
        import tensorstore

        base = {"driver": "file", "path": f"{state}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for name, data in files.items():
            store.write(name, data).result()
    else:
        for name, data in files.items():
            (state / name).parent.mkdir(exist_ok=True)
            (state / name).write_bytes(data)
    return folder


def write_first_orbax(folder: Path, tree: dict) -> Path:
    """A checkpoint of Orbax's first layout: a msgpack that says where the arrays are."""
    state = folder / "state"
    state.mkdir(parents=True)
    index = {}
    for path, leaf in leaves(tree).items():
        index[path] = leaf
        if isinstance(leaf, np.generic | np.ndarray):
            name = path.replace("/", ".")
            index[path] = f"PLACEHOLDER://{name}"
            put_zarr(state / name, np.asarray(leaf))
    (state / "checkpoint").write_bytes(packed(nested(index)))
    return folder
