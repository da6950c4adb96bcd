"""Arrays as TensorStore keeps them: a description and chunks, in a folder or in an OCDBT store.

Only version 2 of zarr, which T5X and Orbax write. TensorStore does the reading; what is added here
is that a chunk that is not there is a fault with a name. Read plainly it would come back as zeros.
"""

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from musicjax.errors import OutputError

CHUNK_BYTES = 64 << 20  # a written array is split until no chunk is larger
COMPRESSOR = {"id": "gzip", "level": 1}
_NAMED = 3  # missing chunks that are told by name; the others are counted


@dataclass(frozen=True)
class ZarrArray:
    """An array on disk: described, not yet read.

    `name` is how faults call it. `shape` and `dtype` are those of its values: with
    `bfloat16_bits`, what is stored as uint16 is read as bfloat16, which is how T5X kept it before
    version 3 of its checkpoints. `store` is the open tensorstore.TensorStore; None when only an
    index knows the array, and then there is a fault that says why.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    bfloat16_bits: bool = False
    store: Any = field(default=None, repr=False, compare=False)

    def missing_chunks(self) -> str | None:
        """A phrase that names the chunks that are not there; None when all are."""
        if self.store is None:
            return None
        metadata = self.store.spec().to_json()["metadata"]
        mark = metadata.get("dimension_separator", ".")
        counts = [-(-n // c) for n, c in zip(self.shape, metadata["chunks"], strict=True)]
        pattern = re.escape(mark).join([r"\d+"] * len(counts)) or "0"
        try:
            keys = [key.decode() for key in self.store.kvstore.list().result()]
        except (ValueError, OSError) as error:
            return f"{self.name} cannot be listed ({_short(error)})"
        there = {key for key in keys if re.fullmatch(pattern, key)}
        # A damaged description may ask for billions: only as many are tried as can be there.
        grid = itertools.islice(itertools.product(*map(range, counts)), len(there) + _NAMED)
        wanted = (mark.join(map(str, index)) or "0" for index in grid)
        absent = [key for key in wanted if key not in there][:_NAMED]
        if not absent:
            return None
        total = math.prod(counts)
        others = total - len(there) - len(absent)
        more = f" and {others} others" if others > 0 else ""
        return f"{self.name} lacks chunk {', '.join(absent)}{more} (of {total})"


def open_arrays(
    kvstores: Mapping[str, Mapping[str, Any]], *, bfloat16_bits: bool = False
) -> tuple[dict[str, ZarrArray], dict[str, str]]:
    """Open arrays by name, reading their descriptions only; and phrases for those that fail.

    kvstores: for each name the TensorStore key-value store that holds `.zarray` and chunks.
    bfloat16_bits: uint16 stands for bfloat16.
    """
    import tensorstore

    opening = {
        name: tensorstore.open(
            {"driver": "zarr", "kvstore": dict(kvstore), "fill_missing_data_reads": False},
            open=True,
            read=True,
        )
        for name, kvstore in kvstores.items()
    }
    arrays, faults = {}, {}
    for name, future in opening.items():
        try:
            store = future.result()
        except (ValueError, OSError) as error:
            absent = "NOT_FOUND" in str(error)
            why = "has no .zarray description" if absent else f"cannot be opened ({_short(error)})"
            faults[name] = f"{name} {why}"
            continue
        dtype = np.dtype(store.dtype.numpy_dtype)
        bits = bfloat16_bits and dtype == np.uint16
        dtype = np.dtype(ml_dtypes.bfloat16) if bits else dtype
        arrays[name] = ZarrArray(name, tuple(store.shape), dtype, bits, store)
    return arrays, faults


def read_arrays(
    arrays: Iterable[ZarrArray],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The values by name, and phrases for the arrays that cannot be read whole."""
    values, faults, reading = {}, {}, []
    for array in arrays:
        missing = array.missing_chunks()
        if missing is not None:
            faults[array.name] = missing
        elif array.store is not None:
            reading.append((array, array.store.read()))
    for array, future in reading:
        try:
            value = np.asarray(future.result())
        except (ValueError, OSError) as error:
            faults[array.name] = f"{array.name} cannot be read ({_short(error)})"
            continue
        values[array.name] = value.view(ml_dtypes.bfloat16) if array.bfloat16_bits else value
    return values, faults


def _short(error: Exception) -> str:
    """TensorStore's message without the places in its own source."""
    return str(error).split(" [")[0].rstrip(".")


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Write each array as `folder/name/`; the spec of each, as T5X keeps it in its index.

    The path in a spec is relative to the folder. Raises OutputError when the disk does not take
    the arrays.
    """
    import tensorstore

    specs, opening = {}, []
    for name, array in arrays.items():
        specs[name] = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": f"{name}/"},
            "metadata": {
                "chunks": list(chunk_shape(array.shape, array.dtype.itemsize)),
                "compressor": dict(COMPRESSOR),
                "shape": list(array.shape),
            },
        }
        place = {"driver": "file", "path": f"{os.fspath(folder.absolute() / name)}/"}
        spec = {**specs[name], "kvstore": place, "store_data_equal_to_fill_value": True}
        opening.append((array, tensorstore.open(spec, create=True)))
    try:
        for write in [future.result().write(array) for array, future in opening]:
            write.result()
    except (ValueError, OSError) as error:
        raise OutputError(f"Cannot write the arrays of '{folder}': {_short(error)}.") from error
    return specs


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Equal chunks of at most 64 MiB, as T5X splits an array.

    The longest axis goes to its next smaller divisor until a chunk is small enough.
    """
    chunk = list(shape)
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        axis = chunk.index(max(chunk))
        chunk[axis] = next(n for n in range(chunk[axis] - 1, 0, -1) if shape[axis] % n == 0)
    return tuple(chunk)
