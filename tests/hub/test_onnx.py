"""ONNX files: tensors and nodes as they are stored, and sentences for what is damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import WeightsError
from musicjax.hub.onnx import OnnxNode, read_onnx

TINY = Path(__file__).parent.parent / "fixtures" / "basic_pitch" / "tiny.onnx"


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, kind, shape, numbers):
    """`numbers` is the field that holds them, encoded."""
    dims = field(1, b"".join(varint(size) for size in shape))  # packed
    return dims + field(2, kind) + numbers + field(8, name.encode())


def model(tmp_path, *graph_fields):
    path = tmp_path / "model.onnx"
    path.write_bytes(field(1, 8) + field(7, b"".join(graph_fields)))
    return path


def test_every_way_to_store_numbers(tmp_path):
    one_by_one = b"".join(varint(4 << 3 | 5) + struct.pack("<f", x) for x in (0.5, -1.5))
    minus_two = (1 << 64) - 2
    stored = {
        "raw": (1, (2, 1), field(9, np.array([1, 2], "<f4").tobytes())),
        "packed": (1, (3,), field(4, np.array([1, 2, 3], "<f4").tobytes())),
        "one_by_one": (1, (2,), one_by_one),
        "doubles": (11, (1,), field(10, np.array([0.1], "<f8").tobytes())),
        "whole": (7, (2,), field(7, varint(7) + varint(minus_two))),
        "int32": (6, (1,), field(5, minus_two)),
        "half": (10, (1,), field(5, varint(0x3E00))),
        "bfloat16": (16, (1,), field(5, varint(0x3FC0))),
        "flags": (9, (2,), field(5, varint(1) + varint(0))),
        "unsigned": (13, (1,), field(11, varint(5))),
        "scalar": (1, (), field(9, np.array([2.5], "<f4").tobytes())),
    }
    graph = read_onnx(
        model(tmp_path, *(field(5, tensor(name, *rest)) for name, rest in stored.items()))
    )
    expected = {
        "raw": [[1], [2]],
        "packed": [1, 2, 3],
        "one_by_one": [0.5, -1.5],
        "doubles": [0.1],
        "whole": [7, -2],
        "int32": [-2],
        "half": [1.5],
        "bfloat16": [1.5],
        "flags": [True, False],
        "unsigned": [5],
        "scalar": 2.5,
    }
    assert set(graph.tensors) == set(expected)
    for name, numbers in expected.items():
        assert graph.tensors[name].shape == np.shape(numbers), name
        np.testing.assert_array_equal(graph.tensors[name].astype(np.float64), numbers, name)


def test_nodes_tell_what_goes_in_and_out(tmp_path):
    parts = ((1, b"x"), (1, b"w"), (2, b"y"), (3, b"first"), (4, b"Conv"))
    node = b"".join(field(number, text) for number, text in parts)
    graph = read_onnx(model(tmp_path, field(1, node)))
    assert graph.nodes == (OnnxNode("Conv", "first", ("x", "w"), ("y",)),)


def test_damage_is_a_sentence(tmp_path):
    whole = TINY.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in (0, 1, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.onnx is not a whole ONNX model: "):
            read_onnx(path)
    path.write_bytes(b"PK\x03\x04 a wheel")
    with pytest.raises(WeightsError, match="not a whole ONNX model"):
        read_onnx(path)
    with pytest.raises(WeightsError, match="cannot read"):
        read_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (tensor("a", 1, (3,), field(9, b"\0" * 8)), r"of shape \(3,\) holds 2 numbers"),
        (tensor("a", 1, (1,), field(9, b"\0" * 5)), "no whole number of float32"),
        (tensor("a", 8, (1,), field(6, b"text")), "of type 8, which holds no numbers"),
        (tensor("a", 1, (1,), field(14, 1)), "in a second file"),
        (field(8, b"\xff\xfe"), "a name in it is not text"),
        (field(8, 3), "the number 3 stands where bytes were expected"),
    ],
)
def test_tensors_that_cannot_be(tmp_path, broken, sentence):
    with pytest.raises(WeightsError, match=sentence):
        read_onnx(model(tmp_path, field(5, broken)))


def test_the_published_file_is_read(shared):
    graph = read_onnx(shared("weights/basic_pitch/nmp.onnx"))
    convolutions = [node for node in graph.nodes if node.kind == "Conv"]
    shapes = [graph.tensors[n.inputs[1]].shape for n in convolutions]
    assert (8, 8, 3, 39) in shapes and (32, 8, 5, 5) in shapes
