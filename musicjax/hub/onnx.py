"""What an ONNX file holds, without ONNX: its stored tensors and its nodes.

A file is one protocol-buffer message (onnx.proto3, `ModelProto`). Only the fields that weights need
are looked at: the graph, its initializers with name, shape and numbers, and for each node what it
does and which tensors go in and out, so that a converter can find a kernel by the convolution that
uses it rather than by a name that an exporter made up. Nothing in the file is run.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from musicjax.errors import WeightsError
from musicjax.hub.protobuf import fields, signed, varint

# Fields of TensorProto that hold numbers.
_FLOAT_DATA, _INT32_DATA, _INT64_DATA, _RAW_DATA, _DOUBLE_DATA, _UINT64_DATA = 4, 5, 7, 9, 10, 11
# TensorProto.DataType: dtype of the numbers, and the field that holds them where raw_data does not.
_DTYPES = {
    1: (np.dtype("<f4"), _FLOAT_DATA),
    2: (np.dtype("<u1"), _INT32_DATA),
    3: (np.dtype("<i1"), _INT32_DATA),
    4: (np.dtype("<u2"), _INT32_DATA),
    5: (np.dtype("<i2"), _INT32_DATA),
    6: (np.dtype("<i4"), _INT32_DATA),
    7: (np.dtype("<i8"), _INT64_DATA),
    9: (np.dtype("?"), _INT32_DATA),
    10: (np.dtype("<f2"), _INT32_DATA),
    11: (np.dtype("<f8"), _DOUBLE_DATA),
    12: (np.dtype("<u4"), _UINT64_DATA),
    13: (np.dtype("<u8"), _UINT64_DATA),
    16: (np.dtype(ml_dtypes.bfloat16), _INT32_DATA),
}
_TWO_BYTE_FLOATS = (10, 16)
_ELSEWHERE = 1  # TensorProto.DataLocation: the numbers are in another file

_Value = int | memoryview


@dataclass(frozen=True)
class OnnxNode:
    """One operation: `kind` as ONNX calls it ("Conv"), and the tensors it reads and writes."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """Stored tensors by name, and the nodes in the order of the file, which is that of running."""

    tensors: dict[str, np.ndarray]
    nodes: tuple[OnnxNode, ...]


def read_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """The initializers and nodes of an ONNX file.

    Raises WeightsError when the file is not there, is cut short, is no ONNX model, or keeps its
    numbers in a second file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}.") from error
    try:
        return _graph(data)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a whole ONNX model: {error}") from None


def _graph(data: bytes) -> OnnxGraph:
    graphs = [value for number, value in fields(data) if number == 7]
    if len(graphs) != 1:
        raise WeightsError(f"it holds {len(graphs)} graphs where one was expected.")
    tensors, nodes = {}, []
    for number, value in fields(_bytes(graphs[0])):
        if number == 1:
            nodes.append(_node(_bytes(value)))
        elif number == 5:
            name, array = _tensor(_bytes(value))
            tensors[name] = array
    return OnnxGraph(tensors, tuple(nodes))


def _node(data: memoryview) -> OnnxNode:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}  # inputs, outputs, name, op_type
    for number, value in fields(data):
        if number in texts:
            texts[number].append(_text(value))
    inputs, outputs, name, kind = texts.values()
    return OnnxNode("".join(kind), "".join(name), tuple(inputs), tuple(outputs))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    kind, name, location = 0, "", 0
    numbers: dict[int, list[_Value]] = {}
    for number, value in fields(data):
        if number == 1:
            shape += _whole_numbers([value])
        elif number == 2:
            (kind,) = _whole_numbers([value])
        elif number == 8:
            name = _text(value)
        elif number == 14:
            (location,) = _whole_numbers([value])
        else:
            numbers.setdefault(number, []).append(value)
    if kind not in _DTYPES:
        raise WeightsError(f"the tensor {name!r} is of type {kind}, which holds no numbers.")
    if location == _ELSEWHERE:
        raise WeightsError(
            f"the numbers of the tensor {name!r} are in a second file; save the model as one file."
        )
    array = _numbers(numbers, kind)
    if array.size != math.prod(shape):
        raise WeightsError(
            f"the tensor {name!r} of shape {tuple(shape)} holds {array.size} numbers."
        )
    return name, array.reshape(shape)


def _numbers(stored: dict[int, list[_Value]], kind: int) -> np.ndarray:
    """The numbers of a tensor, as raw bytes or from its typed field, packed or one by one."""
    dtype, field = _DTYPES[kind]
    if _RAW_DATA in stored:
        return _from_bytes(stored[_RAW_DATA], dtype)
    values = stored.get(field, [])
    if field in (_FLOAT_DATA, _DOUBLE_DATA):
        return _from_bytes(values, dtype)
    whole = _whole_numbers(values)
    if kind in _TWO_BYTE_FLOATS:  # stored bit by bit
        return np.array(whole, np.uint16).view(dtype)
    return np.array(whole, np.uint64 if dtype.kind == "u" else np.int64).astype(dtype)


def _from_bytes(values: Iterable[_Value], dtype: np.dtype) -> np.ndarray:
    raw = b"".join(_bytes(value) for value in values)
    if len(raw) % dtype.itemsize:
        raise WeightsError(f"{len(raw)} bytes are no whole number of {dtype} values.")
    return np.frombuffer(raw, dtype)


def _whole_numbers(values: Iterable[_Value]) -> list[int]:
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(signed(value))
            continue
        at = 0
        while at < len(value):
            number, at = varint(value, at)
            found.append(signed(number))
    return found


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise WeightsError(f"the number {value} stands where bytes were expected.")
    return value


def _text(value: _Value) -> str:
    try:
        return str(bytes(_bytes(value)), "utf-8")
    except UnicodeDecodeError:
        raise WeightsError("a name in it is not text.") from None
