"""The reader of TensorFlow's checkpoints: what a writer of its own wrote, and what is damaged."""

import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicjax.errors import WeightsError
from musicjax.hub.crc32c import crc32c, masked
from musicjax.hub.protobuf import fields, signed, varint
from musicjax.hub.tensorflow import find_bundle, read_bundle, read_index

WRITER = runpy.run_path(str(Path(__file__).parent.parent / "fixtures" / "tensorflow" / "bundle.py"))
write_bundle = WRITER["write_bundle"]

TENSORS = {
    "conv/weights": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "conv/weights/Adam": np.ones((2, 3, 4), np.float32),
    "conv/biases": np.array([1.5, -2.5]),
    "count": np.array(-(2**40)),
    "half": np.array([0.1, 60000], np.float16),
    "brain": np.array([0x3F80, 0xC0A0], np.uint16),  # 1 and -5
    "flags": np.array([[True], [False]]),
    "bytes": np.array([0, 255], np.uint8),
    "small": np.array([-3], np.int8),
    "none": np.zeros((0, 3), np.float32),
    "graph": np.array("a string", object),
}


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "model.ckpt-7", TENSORS, shards=2)
    return tmp_path / "model.ckpt-7"


def test_tensors_come_out_as_they_went_in(bundle):
    found = read_bundle(bundle)
    assert set(found) == set(TENSORS) - {"graph"}
    for name, array in found.items():
        expected = np.array([1, -5], np.float32) if name == "brain" else TENSORS[name]
        np.testing.assert_array_equal(array, expected, err_msg=name, strict=True)


def test_names_can_be_left(bundle):
    found = read_bundle(bundle, leave=[".*/Adam", "conv/bias"])
    assert set(TENSORS) - set(found) == {"conv/weights/Adam", "graph"}


def test_one_tensor_by_hand(tmp_path):
    """Every byte written out: the smallest checkpoint, one scalar 1.0 called x."""
    number = struct.pack("<f", 1.0)
    header = b"\x08\x01\x1a\x02\x08\x01"  # one shard, version 1
    entry = b"\x08\x01\x12\x00\x28\x04\x35" + struct.pack("<I", masked(crc32c(number)))
    rows = b"\x00\x00\x06" + header + b"\x00\x01\x0bx" + entry + b"\0\0\0\0\x01\0\0\0"

    def block(body):
        return body + b"\0" + struct.pack("<I", masked(crc32c(body + b"\0")))

    nothing = b"\0\0\0\0\x01\0\0\0"
    index = b"\x00\x01\x02x\x00" + bytes([len(rows)]) + nothing
    table = block(rows) + block(nothing) + block(index)
    at = len(rows) + 5
    footer = bytes([at, len(nothing), at + len(nothing) + 5, len(index)]).ljust(40, b"\0")
    magic = bytes.fromhex("57fb808b247547db")
    (tmp_path / "x.index").write_bytes(table + footer + magic)
    (tmp_path / "x.data-00000-of-00001").write_bytes(number)
    found = read_bundle(tmp_path / "x")
    assert found.keys() == {"x"} and found["x"] == np.float32(1) and found["x"].shape == ()


def test_a_checkpoint_is_found_by_any_of_its_names(bundle):
    for name in ("model.ckpt-7", "model.ckpt-7.index", "model.ckpt-7.data-00001-of-00002", ""):
        assert find_bundle(bundle.parent / name) == bundle
    with pytest.raises(WeightsError, match=r"there is no .*model\.ckpt\.index"):
        find_bundle(bundle.parent / "model.ckpt")


def test_a_folder_says_which_is_the_newest(bundle):
    write_bundle(bundle.with_name("model.ckpt-9"), {})
    with pytest.raises(WeightsError, match=r"2 TensorFlow checkpoints \(model.ckpt-7, model.ckpt"):
        find_bundle(bundle.parent)
    note = bundle.with_name("checkpoint")
    note.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-9"\nall_model_…: "…-7"\n')
    assert find_bundle(bundle.parent).name == "model.ckpt-9"
    with pytest.raises(WeightsError, match="0 TensorFlow checkpoints"):
        find_bundle(Path(__file__).parent)


# Damage ---------------------------------------------------------------------------------------


def test_every_damaged_byte_of_an_index_is_noticed(tmp_path):
    write_bundle(tmp_path / "x", {"a": np.float32(2), "b": np.float32(3)})
    index = tmp_path / "x.index"
    whole = index.read_bytes()
    used = len(whole) - 48  # the footer's padding means nothing
    for at in [*range(used), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        index.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"x\.index cannot be read as a checkpoint's index"):
            read_index(index)


@given(st.binary(max_size=120), st.booleans())
def test_an_index_of_anything_is_a_sentence(tmp_path_factory, data, ends_well):
    path = tmp_path_factory.getbasetemp() / "any.index"
    path.write_bytes(data + (bytes.fromhex("57fb808b247547db") if ends_well else b""))
    with pytest.raises(WeightsError):
        read_index(path)


def test_damaged_and_missing_data_is_told(bundle):
    data = bundle.with_name("model.ckpt-7.data-00000-of-00002")
    whole = data.read_bytes()
    data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(WeightsError, match=r"the numbers of brain in .*00000-of-00002 are damaged"):
        read_bundle(bundle)
    data.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="ends before small does"):
        read_bundle(bundle)
    data.unlink()
    with pytest.raises(WeightsError, match="belongs beside its index"):
        read_bundle(bundle)


def test_other_kinds_of_checkpoint_are_told(tmp_path):
    write_bundle(tmp_path / "big", {"a": np.float32(1)}, endianness=1)
    with pytest.raises(WeightsError, match="big-endian"):
        read_bundle(tmp_path / "big")
    write_bundle(tmp_path / "snappy", {"a": np.float32(1)}, kind=1)
    with pytest.raises(WeightsError, match="compressed"):
        read_bundle(tmp_path / "snappy")
    (tmp_path / "old.index").write_bytes(b"SavedTensorSlices" * 9)
    with pytest.raises(WeightsError, match="from before 2016"):
        read_bundle(tmp_path / "old")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (WRITER["entry"](1, (2,), 0, 0, b"", slices=[b""]), "saved in slices"),
        (WRITER["entry"](1, (3,), 0, 0, bytes(4)), r"\(3,\) of float32 .* to have 4 bytes"),
        (WRITER["entry"](1, (2**64 - 1,), 0, 0, bytes(4)), r"\(-1,\) of float32"),
        (WRITER["entry"](1, (1,), 0, 2**62, bytes(4)), "ends before a does"),
        (WRITER["entry"](1, (1,), 5, 0, bytes(4)), "data-00005-of-00001 cannot be read"),
    ],
)
def test_entries_that_lie_are_told(tmp_path, entry, said):
    header = WRITER["number"](1, 1)
    (tmp_path / "x.index").write_bytes(WRITER["table"]({b"": header, b"a": entry}))
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(4))
    with pytest.raises(WeightsError, match=said):
        read_bundle(tmp_path / "x")


# The parts --------------------------------------------------------------------------------------


def test_checksums_that_are_published():
    """The check value of the CRC catalogue, and the patterns of RFC 3720, appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@given(st.binary(max_size=700))
def test_checksums_in_lanes_are_those_byte_by_byte(data):
    assert crc32c(data) == WRITER["crc32c"](data)


def test_protobuf_numbers():
    assert varint(memoryview(b"\x96\x01"), 0) == (150, 2)
    assert signed((1 << 64) - 5) == -5 and signed(5) == 5
    message = b"\x08\x96\x01\x12\x02hi\x1d\x01\0\0\0\x21\x02\0\0\0\0\0\0\0"
    found = [(n, v if isinstance(v, int) else bytes(v)) for n, v in fields(message)]
    assert found == [(1, 150), (2, b"hi"), (3, b"\x01\0\0\0"), (4, b"\x02\0\0\0\0\0\0\0")]
    for cut in (b"\x08", b"\x08\x96", b"\x12\x03hi", b"\x1d\x01", b"\x0b", b"\x08" + b"\xff" * 11):
        with pytest.raises(WeightsError, match="damaged: fetch it again"):
            list(fields(cut))


# A checkpoint that TensorFlow wrote ------------------------------------------------------------


def test_a_published_checkpoint(shared):
    """Basic Pitch's variables: all their checksums hold, and the network's layers are there."""
    index = shared("weights/basic_pitch/nmp_tf_variables.index")
    found = read_bundle(index)
    shards, entries = read_index(index)
    assert shards == 1 and len(entries) - len(found) == 1  # the object graph is a string
    kernels = {a.shape for n, a in found.items() if "kernel" in n and "OPTIMIZER" not in n}
    assert {(3, 39, 8, 8), (5, 5, 8, 1), (7, 7, 1, 32), (5, 5, 8, 32), (3, 3, 33, 1)} <= kernels
    assert all(np.isfinite(a).all() for a in found.values())
