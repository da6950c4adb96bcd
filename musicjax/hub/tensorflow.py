"""TensorFlow's checkpoints without TensorFlow: the "V2" bundle of an index and data files.

A checkpoint NAME is `NAME.index` and `NAME.data-00000-of-00001` (or more of these). The index is a
sorted string table (LevelDB's): blocks of keys and values, a block that says where they are, and a
footer. The empty key holds a BundleHeaderProto; every other is a tensor's name and holds a
BundleEntryProto, which says where in which data file its numbers lie. The formats stand in
tensorflow/core/protobuf/tensor_bundle.proto and tensorflow/core/lib/io/format.h.

Nothing in such a file is code, but sizes and places in it may be wrong: all are checked, and so are
the checksums of every block and of every tensor that is read.
"""

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicjax.errors import WeightsError
from musicjax.hub.crc32c import crc32c, masked
from musicjax.hub.protobuf import fields, signed, varint

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BFLOAT16 = 14
# tensorflow/core/framework/types.proto. Strings, resources and the like hold no weights.
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    8: "<c8",
    9: "<i8",
    10: "|b1",
    _BFLOAT16: "<u2",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}


@dataclass(frozen=True)
class BundleEntry:
    """Where a tensor lies: `size` bytes from `offset` of data file `shard`, and their checksum."""

    dtype: int = 0  # a number of types.proto
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    in_slices: bool = False  # a variable that was spread over machines


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """The common beginning NAME of a checkpoint's files.

    `path` is NAME itself, one of its files, or a folder: then the checkpoint that the folder's
    `checkpoint` file calls the newest, or the only one there is.
    Raises WeightsError when that leads to no checkpoint, or to several.
    """
    path = Path(path)
    if path.is_dir():
        return _bundle_of_folder(path)
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    if not path.with_name(f"{name}.index").is_file():
        raise WeightsError(
            f"there is no {path.with_name(name)}.index: a TensorFlow checkpoint NAME is the files "
            "NAME.index and NAME.data-00000-of-00001; give NAME, with both files there."
        )
    return path.with_name(name)


def _bundle_of_folder(folder: Path) -> Path:
    names = sorted(file.name.removesuffix(".index") for file in folder.glob("*.index"))
    if (folder / "checkpoint").is_file():
        text = (folder / "checkpoint").read_text(errors="replace")
        newest = re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE)
        if newest and Path(newest[1]).name in names:
            return folder / Path(newest[1]).name
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise WeightsError(
            f"the folder {folder} holds {len(names)} TensorFlow checkpoints ({found}) and no file "
            "`checkpoint` that says which is the newest; give FOLDER/NAME, without an ending."
        )
    return folder / names[0]


def read_bundle(
    path: str | os.PathLike[str], *, leave: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The tensors of a TensorFlow checkpoint by name.

    `path` is as for `find_bundle`. Names that match a whole regular expression of `leave` are not
    read (an optimiser's moments are two thirds of a training checkpoint), nor are strings and
    other tensors that hold no numbers. bfloat16 comes as float32.
    Raises WeightsError when a file is missing, damaged, compressed or of a big-endian machine.
    """
    prefix = find_bundle(path)
    shards, entries = read_index(Path(f"{prefix}.index"))
    patterns = [re.compile(pattern) for pattern in leave]
    tensors: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        if entry.dtype in _DTYPES and not any(p.fullmatch(name) for p in patterns):
            file = Path(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
            tensors[name] = _read_tensor(file, name, entry)
    return tensors


def read_index(path: Path) -> tuple[int, dict[str, BundleEntry]]:
    """How many data files a checkpoint has, and its entries by name.

    Raises WeightsError when the file is not the index of a checkpoint, or is damaged.
    """
    try:
        rows = dict(_table(memoryview(path.read_bytes())))
        shards = _shards(rows.pop(b"", b""))
        return shards, {key.decode(): _entry(value) for key, value in rows.items()}
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be read as a checkpoint's index: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} has a name in it that is not text; it is damaged.") from error


def _read_tensor(file: Path, name: str, entry: BundleEntry) -> np.ndarray:
    if entry.in_slices:
        raise WeightsError(
            f"{name} was saved in slices by several machines, which is not read here; load the "
            "checkpoint in TensorFlow on one machine and save it again."
        )
    dtype = np.dtype(_DTYPES[entry.dtype])
    size = math.prod(entry.shape) * dtype.itemsize
    if entry.size != size or min((entry.offset, *entry.shape), default=0) < 0:
        raise WeightsError(
            f"{name} is {entry.shape} of {dtype} and is said to have {entry.size} bytes; the index "
            "is damaged: fetch it again."
        )
    try:
        with file.open("rb") as opened:
            if size > os.fstat(opened.fileno()).st_size - entry.offset:
                raise WeightsError(f"{file} ends before {name} does; fetch it again.")
            opened.seek(entry.offset)
            data = opened.read(size)
    except OSError as error:
        raise WeightsError(
            f"the checkpoint's data file {file} cannot be read ({error.strerror}); it belongs "
            "beside its index."
        ) from error
    if masked(crc32c(data)) != entry.checksum:
        raise WeightsError(f"the numbers of {name} in {file} are damaged; fetch it again.")
    numbers = np.frombuffer(data, dtype)
    if entry.dtype == _BFLOAT16:  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(entry.shape)


# The table ----------------------------------------------------------------------------------


def _table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a sorted string table."""
    if len(data) < _FOOTER_BYTES or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise WeightsError(
            "it does not end as one does. Checkpoints from before 2016 are one file without an "
            "index; save such a one again with a newer TensorFlow."
        )
    names, at = _place(data, len(data) - _FOOTER_BYTES)
    list(_block(data, *names))  # names of further blocks: there are none, but it may be damaged
    index, _ = _place(data, at)
    for _, handle in _block(data, *index):
        place, _ = _place(handle, 0)
        yield from _block(data, *place)


def _place(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of one block. A key repeats the beginning of the one before it."""
    if offset + size + 5 > len(data):
        raise WeightsError("it ends in the middle of a block; fetch it again.")
    body = data[offset : offset + size]
    kind, checksum = struct.unpack_from("<BI", data, offset + size)
    if masked(crc32c(data[offset : offset + size + 1])) != checksum:
        raise WeightsError("a block does not have its checksum; it is damaged: fetch it again.")
    if kind != 0:
        raise WeightsError(
            "it is compressed, which TensorFlow's own checkpoints are not; save it again there."
        )
    # The block ends with places to start a search from, and their number.
    stop = size - 4 * (struct.unpack_from("<I", body, size - 4)[0] + 1) if size >= 4 else -1
    if stop < 0:
        raise WeightsError("a block has more restarts than bytes; it is damaged: fetch it again.")
    key, at = b"", 0
    while at < stop:
        shared, at = varint(body, at)
        fresh, at = varint(body, at)
        length, at = varint(body, at)
        if shared > len(key) or at + fresh + length > stop:
            raise WeightsError("an entry leaves its block; it is damaged: fetch it again.")
        key = key[:shared] + bytes(body[at : at + fresh])
        yield key, body[at + fresh : at + fresh + length]
        at += fresh + length


# The messages -------------------------------------------------------------------------------


def _shards(message: memoryview | bytes) -> int:
    """BundleHeaderProto: 1 number of data files, 2 byte order (0 little, 1 big), 3 version."""
    header = dict(fields(message))
    if header.get(2, 0) != 0:
        raise WeightsError("it was written by a big-endian machine; save it again on another.")
    shards = header.get(1, 0)
    if not isinstance(shards, int) or shards < 1:
        raise WeightsError("it has no header; it is the index of something else.")
    return shards


def _entry(message: memoryview) -> BundleEntry:
    """BundleEntryProto: 1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 checksum, 7 slices."""
    numbers: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    checksum, in_slices = 0, False
    for number, value in fields(message):
        if isinstance(value, int):
            numbers[number] = signed(value)
        elif number == 2:
            shape = _shape(value)
        elif number == 6 and len(value) == 4:
            checksum = struct.unpack("<I", value)[0]
        elif number == 7:
            in_slices = True
    dtype, shard, offset, size = (numbers.get(number, 0) for number in (1, 3, 4, 5))
    return BundleEntry(dtype, shape, shard, offset, size, checksum, in_slices)


def _shape(message: memoryview) -> tuple[int, ...]:
    """TensorShapeProto: 2 dimensions, each a message with 1 size (0 where it is left out)."""
    sizes = []
    for number, value in fields(message):
        if number == 2 and not isinstance(value, int):
            size = dict(fields(value)).get(1, 0)
            sizes.append(signed(size) if isinstance(size, int) else -1)
    return tuple(sizes)
