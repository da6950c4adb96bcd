"""A weights file alone rebuilds its model; what is damaged or foreign is told in a sentence."""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from musicjax import registry
from musicjax.errors import ModelNotFoundError, OutputError, WeightsError
from musicjax.hub import load_model, read_header, save_weights, weights
from musicjax.types import Policy


def flat(model):
    return {".".join(map(str, k)): v.get_value() for k, v in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_saved_and_loaded_is_the_same_model(tmp_path, tiny_model, dtype, error):
    model, config = tiny_model
    path = tmp_path / "m.safetensors"
    save_weights(path, model, config, system="onsets_frames", dtype=dtype, extra={"steps": 7})
    loaded = load_model(path)
    assert loaded.config == config
    assert loaded.system.name == "onsets_frames"
    assert loaded.card is None
    before, after = flat(model), flat(loaded.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        np.testing.assert_allclose(after[name], value, rtol=error, atol=1e-7, err_msg=name)
    assert read_header(path)["extra"] == {"steps": 7}


def test_values_too_large_for_the_storage_type_and_statistics_stay_float32(tmp_path, tiny_model):
    model, config = tiny_model
    state = nnx.state(model)
    leaves = nnx.to_flat_state(state)
    big = next(k for k, v in leaves if isinstance(v, nnx.Param))
    changed = [(k, v.replace(v.get_value() + 1e6) if k == big else v) for k, v in leaves]
    path = tmp_path / "m.safetensors"
    save_weights(path, nnx.from_flat_state(changed), config, system="onsets_frames")
    stored = safetensors.numpy.load_file(path)
    assert stored[".".join(map(str, big))].dtype == np.float32
    for keys, variable in leaves:
        if isinstance(variable, nnx.BatchStat):
            assert stored[".".join(map(str, keys))].dtype == np.float32
    assert any(array.dtype == np.float16 for array in stored.values())


def test_policy_chooses_the_types_in_memory(tiny_weights):
    loaded = load_model(tiny_weights, policy=Policy(param_dtype="bfloat16", dtype="bfloat16"))
    assert loaded.config.policy.dtype == "bfloat16"
    kinds = {v.dtype for v in flat(loaded.model).values()}
    assert jnp.dtype("bfloat16") in kinds


def test_a_failed_write_leaves_the_old_file(tmp_path, tiny_model, monkeypatch):
    model, config = tiny_model
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="room"):
        save_weights(path, model, config, system="onsets_frames")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_truncated_file_is_told(tmp_path, tiny_weights):
    path = tmp_path / "short.safetensors"
    path.write_bytes(tiny_weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_model(path)


def test_a_foreign_safetensors_file_is_told(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(WeightsError, match="musicjax convert"):
        load_model(path)


def _rewritten(tmp_path, source, change_header=None, change_arrays=None):
    arrays, header = safetensors.numpy.load_file(source), read_header(source)
    if change_header:
        change_header(header)
    if change_arrays:
        change_arrays(arrays)
    path = tmp_path / "changed.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"musicjax": json.dumps(header)})
    return path


def test_all_that_does_not_fit_is_reported_at_once(tmp_path, tiny_weights):
    names = sorted(safetensors.numpy.load_file(tiny_weights))

    def change(arrays):
        del arrays[names[0]]
        arrays[names[1]] = np.zeros((1, 2, 3), np.float32)
        arrays["stranger"] = np.zeros(1, np.float32)

    with pytest.raises(WeightsError, match="3 places") as told:
        load_model(_rewritten(tmp_path, tiny_weights, change_arrays=change))
    for word in (f"{names[0]} ", f"{names[1]} is (1, 2, 3)", "stranger is not in the model"):
        assert word in str(told.value)


def test_files_of_the_future_say_so(tmp_path, tiny_weights):
    path = _rewritten(tmp_path, tiny_weights, lambda header: header.update(format=99))
    with pytest.raises(WeightsError, match="format 99"):
        load_model(path)
    path = _rewritten(tmp_path, tiny_weights, lambda h: h["config"].update(num_pitchez=1))
    with pytest.raises(WeightsError, match="num_pitches"):
        load_model(path)


def test_a_folder_stands_for_its_weights(tmp_path, tiny_weights):
    with pytest.raises(WeightsError, match="holds 0"):
        load_model(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(tiny_weights.read_bytes())
    with pytest.raises(WeightsError, match="holds 2"):
        load_model(tmp_path)
    (tmp_path / "best.safetensors").write_bytes(tiny_weights.read_bytes())
    assert load_model(tmp_path).name.endswith("best.safetensors")


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(ModelNotFoundError, match="did you mean onsets_frames"):
        load_model("onset_frames.smal")
    with pytest.raises(ModelNotFoundError, match="no weights file"):
        load_model(tmp_path / "gone.safetensors")


def test_a_card_without_weights_says_how_to_get_some(monkeypatch):
    system = registry.find_system("onsets_frames")
    card = dataclasses.replace(next(iter(system.cards.values())), source=None)
    bare = dataclasses.replace(system, cards={"bare": card})
    monkeypatch.setattr(registry, "systems", lambda: {"onsets_frames": bare})
    with pytest.raises(WeightsError, match="musicjax train onsets_frames") as told:
        load_model("onsets_frames.bare")
    assert "musicjax convert CHECKPOINT --to onsets_frames.bare -o" in str(told.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="musicjax train onsets_frames") as told:
        load_model("onsets_frames.bare")
    assert "musicjax convert" not in str(told.value)


def test_a_file_with_the_weights_of_a_card_has_that_card(tmp_path, tiny_model, tiny_weights):
    model, config = tiny_model
    system = registry.find_system("onsets_frames")
    card = next(card for card in system.cards.values() if card.source is not None)
    converted = tmp_path / "converted.safetensors"
    of = {"source": "theirs.pt", "source_sha256": card.source.sha256}
    save_weights(converted, model, config, system="onsets_frames", extra=of)
    assert load_model(converted).card is card
    assert load_model(tiny_weights).card is None
    shipped = registry.Source(
        "package:a", hashlib.sha256(data := tiny_weights.read_bytes()).hexdigest(), len(data)
    )
    ours = dataclasses.replace(card, source=shipped)
    known = dataclasses.replace(system, cards={"bare": ours})
    assert weights._card_of(tiny_weights, known) is ours
    assert weights._card_of(converted, known) is None


def test_a_foreign_checkpoint_is_converted_once(tmp_path, tiny_model, monkeypatch):
    from musicjax.models.onsets_frames import convert

    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "theirs.pt").write_bytes(b"their format")
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr(
        convert, "from_theirs", lambda path: asked.append(path) or tiny_model, raising=False
    )
    sha256 = hashlib.sha256(b"their format").hexdigest()
    source = registry.Source("https://nowhere.invalid/theirs.pt", sha256, 12, "from_theirs")
    system = registry.find_system("onsets_frames")
    card = dataclasses.replace(next(iter(system.cards.values())), source=source)
    known = dataclasses.replace(system, cards={"theirs": card})
    monkeypatch.setattr(registry, "systems", lambda: {"onsets_frames": known})
    with ThreadPoolExecutor() as pool:  # two at once: one waits for the other
        at_once = list(pool.map(load_model, ["onsets_frames.theirs"] * 2))
    for loaded in (*at_once, load_model("onsets_frames.theirs")):
        assert (loaded.name, loaded.card) == ("onsets_frames.theirs", card)
        assert flat(loaded.model).keys() == flat(tiny_model[0]).keys()
    assert asked == [tmp_path / "mirror" / "theirs.pt"]
