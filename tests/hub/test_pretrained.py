"""Folders in the layout of transformers: one file or several, safetensors or pickles."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.pretrained import is_pretrained, load_transformer, read_pretrained

CONFIG = {"model_type": "t5", "vocab_size": 11, "d_model": 8, "num_heads": 2, "d_kv": 3}
CONFIG |= {"d_ff": 6, "num_layers": 1, "relative_attention_num_buckets": 4}


def weights():
    """Every tensor of a T5 of this size, by the names of transformers."""
    rng = np.random.default_rng(0)
    shapes = {"shared.weight": (11, 8)}
    for side, layers in (
        ("encoder", ["SelfAttention"]),
        ("decoder", ["SelfAttention", "EncDecAttention"]),
    ):
        for number, name in enumerate(layers):
            layer = f"{side}.block.0.layer.{number}"
            shapes |= {f"{layer}.{name}.{part}.weight": (6, 8) for part in "qkv"}
            shapes[f"{layer}.{name}.o.weight"] = (8, 6)
            shapes[f"{layer}.layer_norm.weight"] = (8,)
        layer = f"{side}.block.0.layer.{len(layers)}"
        shapes[f"{layer}.DenseReluDense.wi.weight"] = (6, 8)
        shapes[f"{layer}.DenseReluDense.wo.weight"] = (8, 6)
        shapes[f"{layer}.layer_norm.weight"] = (8,)
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[first] = (4, 2)
        shapes[f"{side}.final_layer_norm.weight"] = (8,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def put(folder, tensors, *, parts=1):
    """The folder in safetensors, in one file or in several with their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if parts == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    places = {
        name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors"
        for i, name in enumerate(tensors)
    }
    for file in set(places.values()):
        own = {name: tensors[name] for name in tensors if places[name] == file}
        safetensors.numpy.save_file(own, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_of_safetensors(tmp_path, parts):
    tensors = weights()
    folder = put(tmp_path / "t5", tensors, parts=parts)
    assert is_pretrained(folder) and not is_pretrained(tmp_path)
    found = read_pretrained(folder)
    assert found.description == CONFIG
    assert found.weights.keys() == tensors.keys()
    model = load_transformer(folder)
    state = nnx.state(model, nnx.Param)
    query = tensors["decoder.block.0.layer.1.EncDecAttention.q.weight"]
    np.testing.assert_array_equal(
        state["decoder"]["layers"][0]["cross_attention"]["query"]["kernel"][...], query.T
    )


def stored_zip(files):
    """A zip archive without compression, as torch writes it."""
    import io
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def torch_file(tensors):
    """A state dict as torch.save writes it: a pickle that names torch's functions, and storages."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    pickle, files = b"\x80\x02}(", {}
    for key, (name, array) in enumerate(tensors.items()):
        strides = [s // array.itemsize for s in array.strides]
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key))
        storage += text("cpu") + number(array.size) + b"tQ"
        pickle += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0)
        pickle += numbers(array.shape) + numbers(strides) + b"\x89}tR"
        files[f"archive/data/{key}"] = array.tobytes()
    return stored_zip({"archive/data.pkl": pickle + b"u.", **files})


@pytest.mark.parametrize("parts", [1, 2])
def test_a_folder_of_pickles_is_read_without_running_them(tmp_path, parts):
    tensors = weights()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if parts == 1:
        (tmp_path / "pytorch_model.bin").write_bytes(torch_file(tensors))
    else:
        names = list(tensors)
        places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
        for file in set(places.values()):
            own = {name: tensors[name] for name in names if places[name] == file}
            (tmp_path / file).write_bytes(torch_file(own))
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    found = read_pretrained(tmp_path).weights
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    pickle = stored_zip({"archive/data.pkl": b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR."})
    (tmp_path / "pytorch_model.bin").write_bytes(pickle)
    with pytest.raises(WeightsError, match=r"os\.system"):
        read_pretrained(tmp_path)


def test_all_that_is_missing_is_said_at_once(tmp_path):
    tensors = weights()
    folder = put(tmp_path / "t5", tensors, parts=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    third = folder / "model-00003-of-00003.safetensors"
    own = safetensors.numpy.load_file(third)
    lost = sorted(own)[0]
    del own[lost]
    safetensors.numpy.save_file(own, third)
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(WeightsError) as error:
        read_pretrained(folder)
    message = str(error.value)
    assert "in 3 places" in message
    assert "model-00002-of-00003.safetensors is missing" in message
    assert f"{lost} is not in model-00003-of-00003.safetensors" in message
    assert "model-00001-of-00003.safetensors is not a whole safetensors file" in message


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{"}, "config.json is damaged"),
        ({"config.json": "[]"}, "holds a list"),
        ({"config.json": "{}"}, "neither model.safetensors nor pytorch_model.bin"),
        ({"config.json": "{}", "model.safetensors.index.json": "{}"}, "no weight_map"),
        (
            {
                "config.json": "{}",
                "model.safetensors.index.json": '{"weight_map": {"a": "../b.safetensors"}}',
            },
            "no weight_map",
        ),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, files, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=sentence):
        read_pretrained(tmp_path)


def test_a_family_that_is_not_known(tmp_path):
    folder = put(tmp_path / "gpt", {"a": np.zeros(2, np.float32)})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="model_type is 'gpt2'"):
        load_transformer(folder)
    with pytest.raises(WeightsError, match="there is no folder"):
        load_transformer(tmp_path / "gone")
