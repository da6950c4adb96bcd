"""T5X checkpoints of every layout: read as written by hand, written as T5X reads them."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5x_files as files
from flax import nnx

from musicjax.errors import OutputError, WeightsError
from musicjax.hub import zarr
from musicjax.hub.convert import Rule
from musicjax.hub.t5x import fill, is_t5x, open_t5x, read_t5x, write_t5x

KERNEL = "target/encoder/layers_0/mlp/wi_0/kernel"
EMBEDDING = "target/decoder/token_embedder/embedding"


def slots(**used):
    """The four slots of one parameter in T5X's Adafactor."""
    unused = np.zeros((1,), np.float32)
    return {name: used.get(name, unused) for name in ("m", "v", "v_col", "v_row")}


@pytest.fixture
def tree():
    """A model of two matrices and a scale, with its optimizer, one of each kind of leaf."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "state": {
            "param_states": {
                "decoder": {
                    "token_embedder": {
                        "embedding": slots(v_row=normal(5), v_col=normal(7)),
                    },
                },
                "encoder": {
                    "encoder_norm": {"scale": slots(v=normal(6))},
                    "layers_0": {"mlp": {"wi_0": {"kernel": slots(v=normal(6, 4))}}},
                },
                "frozen": None,
            },
            "step": np.int32(70_000),
        },
        "target": {
            "decoder": {"token_embedder": {"embedding": normal(5, 7)}},
            "encoder": {
                "encoder_norm": {"scale": normal(6)},
                "layers_0": {"mlp": {"wi_0": {"kernel": normal(6, 4)}}},
            },
        },
        "flax_mutables": {},
    }


def assert_same(got, tree):
    """The same leaves under the same names, of the same kind, dtype and values."""
    got, wanted = files.leaves(got), files.leaves(tree)
    assert list(got) == list(wanted) or set(got) == set(wanted)
    for name, leaf in wanted.items():
        assert type(got[name]) is type(leaf), name
        if isinstance(leaf, np.ndarray | np.generic):
            assert got[name].dtype == leaf.dtype, name
            assert got[name].shape == leaf.shape, name
            assert got[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize("driver", ["file", "gfile", "gcs", "gcs, old", "address"])
def test_the_legacy_layout_is_read_whatever_its_driver(tmp_path, tree, driver):
    folder = files.write_legacy(tmp_path / "checkpoint_70000", tree, driver=driver)
    assert_same(read_t5x(folder), tree)
    assert open_t5x(folder).layout == "legacy"


@pytest.mark.parametrize("compressor", [files.GZIP, None])
def test_arrays_of_several_chunks(tmp_path, tree, compressor):
    chunks = {EMBEDDING: (2, 4), KERNEL: (6, 1)}
    folder = files.write_legacy(tmp_path / "c", tree, chunks=chunks, compressor=compressor)
    assert len(list((folder / EMBEDDING.replace("/", ".")).iterdir())) == 1 + 3 * 2
    assert_same(read_t5x(folder), tree)


def test_arrays_inside_the_index(tmp_path, tree):
    folder = files.write_legacy(tmp_path / "c", tree, all_inline=True)
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]
    assert_same(read_t5x(folder), tree)


def test_bfloat16_in_its_two_forms(tmp_path, tree):
    embedding = tree["target"]["decoder"]["token_embedder"]
    half = embedding["embedding"].astype(files.BFLOAT16)
    embedding["embedding"] = half
    assert_same(read_t5x(files.write_legacy(tmp_path / "native", tree)), tree)
    assert_same(read_t5x(files.write_legacy(tmp_path / "in", tree, all_inline=True)), tree)
    embedding["embedding"] = half.view(np.uint16)
    old = read_t5x(files.write_legacy(tmp_path / "bits", tree, version=2))
    embedding["embedding"] = half
    assert_same(old, tree)


@pytest.mark.parametrize("ocdbt", [True, False])
def test_the_orbax_layout(tmp_path, tree, ocdbt):
    folder = files.write_orbax(tmp_path / "checkpoint_70000", tree, ocdbt=ocdbt)
    assert_same(read_t5x(folder), tree)
    assert open_t5x(folder).layout == "orbax"


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_first_orbax_layout(tmp_path, tree, wrapped):
    written = {"_optimizer": tree, "flax_mutables": None} if wrapped else tree
    assert_same(read_t5x(files.write_first_orbax(tmp_path / "checkpoint_1", written)), tree)


def test_a_folder_of_several_means_the_newest(tmp_path, tree):
    for step in (9, 10, 8):
        tree["state"]["step"] = np.int32(step)
        folder = files.write_legacy(tmp_path / f"checkpoint_{step}", tree)
    assert read_t5x(tmp_path)["state"]["step"] == 10
    assert read_t5x(folder / "checkpoint")["state"]["step"] == 8
    assert is_t5x(tmp_path) and is_t5x(folder) and not is_t5x(folder / "elsewhere")


def test_only_what_is_asked_for_is_read(tmp_path, tree):
    """Weights without their optimizer are enough for a model."""
    folder = files.write_legacy(tmp_path / "c", tree)
    for path in folder.glob("state.*/*"):
        path.unlink()
    checkpoint = open_t5x(folder)
    got = checkpoint.read("target")
    assert set(got) == {name.removeprefix("target/") for name in (KERNEL, EMBEDDING)} | {
        "encoder/encoder_norm/scale"
    }
    with pytest.raises(WeightsError, match="in 2 places: state/param_states/encoder"):
        checkpoint.read()


# --- bad input -------------------------------------------------------------------------------


def test_everything_wrong_with_a_folder_is_said_at_once(tmp_path, tree):
    chunks = {EMBEDDING: (1, 1), KERNEL: (2, 2)}
    folder = files.write_legacy(tmp_path / "c", tree, chunks=chunks)
    embedding, kernel = folder / EMBEDDING.replace("/", "."), folder / KERNEL.replace("/", ".")
    for path in embedding.glob("[1-4].*"):
        path.unlink()
    (kernel / "1.1").unlink()
    scale = folder / "target.encoder.encoder_norm.scale"
    (scale / "0").write_bytes((scale / "0").read_bytes()[:20])
    slot = folder / "state.param_states.encoder.layers_0.mlp.wi_0.kernel.v"
    (slot / ".zarray").unlink()
    norm = folder / "state.param_states.encoder.encoder_norm.scale.v"
    described = json.loads((norm / ".zarray").read_text())
    (norm / ".zarray").write_text(json.dumps(described | {"shape": [3]}))
    with pytest.raises(WeightsError) as error:
        read_t5x(folder)
    message = str(error.value)
    assert "in 5 places" in message
    assert f"{EMBEDDING} lacks chunk 1.0, 1.1, 1.2 and 25 others (of 35)" in message
    assert f"{KERNEL} lacks chunk 1.1 (of 6)" in message
    assert "target/encoder/encoder_norm/scale cannot be read" in message
    assert "wi_0/kernel/v has no .zarray description" in message
    assert "encoder_norm/scale/v is (6,) in the index and (3,) in its folder" in message


@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_damaged_orbax_store(tmp_path, tree, ocdbt):
    folder = files.write_orbax(tmp_path / "c", tree, ocdbt=ocdbt)
    state = folder / "state"
    if ocdbt:
        for path in (state / "d").iterdir():
            path.unlink()
    else:
        (state / KERNEL.replace("/", ".") / "0.0").unlink()
    with pytest.raises(WeightsError, match=KERNEL):
        read_t5x(folder)
    (state / "_METADATA").write_text('{"tree_metadata": {"x": {}}}')
    with pytest.raises(WeightsError, match="_METADATA is not the description"):
        read_t5x(folder)
    (state / "_METADATA").unlink()
    with pytest.raises(WeightsError, match=r"not a T5X checkpoint|no _METADATA"):
        read_t5x(folder)


def test_a_truncated_index(tmp_path, tree):
    folder = files.write_legacy(tmp_path / "c", tree)
    data = (folder / "checkpoint").read_bytes()
    for size in (0, 1, 10, 40, len(data) // 2, len(data) - 1):
        (folder / "checkpoint").write_bytes(data[:size])
        with pytest.raises(WeightsError, match=f"truncated.*has {size:,} bytes"):
            open_t5x(folder)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'model_checkpoint_path: "model.ckpt-0"', "TensorFlow"),
        (files.packed([1, 2]), "holds a list"),
        (files.packed({"version": 1, "optimizer": {"target": {}}}), "version 1"),
        (files.packed({"params": {}}), "holds params, not the target"),
        (files.packed({"version": 3, "optimizer": None}), "not the target"),
    ],
)
def test_what_is_no_checkpoint_of_t5x(tmp_path, data, sentence):
    (tmp_path / "checkpoint").write_bytes(data)
    with pytest.raises(WeightsError, match=sentence):
        open_t5x(tmp_path)


def test_folders_that_hold_none(tmp_path):
    with pytest.raises(WeightsError, match="there is no folder"):
        open_t5x(tmp_path / "gone")
    with pytest.raises(WeightsError, match="neither a file `checkpoint`"):
        open_t5x(tmp_path)
    (tmp_path / "checkpoint_5").mkdir()
    with pytest.raises(WeightsError, match="not a whole T5X checkpoint"):
        open_t5x(tmp_path)


@pytest.mark.parametrize("path", ["../secrets", "/etc", "a/../../b", ""])
def test_no_array_is_read_from_outside_the_folder(tmp_path, tree, path):
    scale = tree["target"]["encoder"]["encoder_norm"]["scale"]
    outside = files.spec("x", scale)
    outside["kvstore"]["path"] = path
    files.put_zarr(tmp_path / "secrets", scale)
    (tmp_path / "c").mkdir()
    index = {"version": 3, "optimizer": {"target": {"scale": outside}, "state": {}}}
    (tmp_path / "c" / "checkpoint").write_bytes(files.packed(index))
    with pytest.raises(WeightsError, match="target/scale has a spec whose path does not lie"):
        read_t5x(tmp_path / "c")


# --- writing ---------------------------------------------------------------------------------


def test_the_legacy_layout_is_written_as_t5x_writes_it(tmp_path, tree):
    by_hand = files.write_legacy(tmp_path / "hand" / "checkpoint_70000", tree)
    folder = write_t5x(tmp_path / "ours", read_t5x(by_hand))
    assert folder == tmp_path / "ours" / "checkpoint_70000"
    assert (folder / "checkpoint").read_bytes() == (by_hand / "checkpoint").read_bytes()
    names = sorted(str(p.relative_to(by_hand)) for p in by_hand.rglob("*"))
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == names
    for path in by_hand.rglob(".zarray"):
        ours = json.loads((folder / path.relative_to(by_hand)).read_text())
        ours.pop("dimension_separator", None)
        assert ours == json.loads(path.read_text())
    for path in by_hand.rglob("[0-9]*"):
        ours = (folder / path.relative_to(by_hand)).read_bytes()
        assert gzip.decompress(ours) == gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("layout", ["legacy", "orbax"])
def test_what_is_written_is_read_again(tmp_path, tree, layout):
    tree["target"]["half"] = np.arange(6, dtype=np.float32).reshape(2, 3).astype(files.BFLOAT16)
    tree["target"]["zeros"] = np.zeros((3, 2), np.float32)
    folder = write_t5x(tmp_path, tree, layout=layout)
    assert folder.name == "checkpoint_70000"
    assert open_t5x(folder).layout == layout
    assert_same(read_t5x(folder), tree)
    with pytest.raises(OutputError, match="there already"):
        write_t5x(tmp_path, tree, layout=layout)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_70000"]


def test_orbax_restores_what_is_written_as_t5x_asks_it_to(tmp_path, tree):
    import orbax.checkpoint as ocp

    write_t5x(tmp_path, tree, layout="orbax")
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    with ocp.CheckpointManager(tmp_path, options=options, item_handlers=handlers) as manager:
        assert manager.latest_step() == 70_000
        how = jax.tree.map(lambda _: ocp.RestoreArgs(), tree)
        restore = ocp.args.PyTreeRestore(tree, how)
        restored = manager.restore(70_000, args=ocp.args.Composite(state=restore))["state"]
    for name, leaf in files.leaves(tree).items():
        if isinstance(leaf, np.ndarray):
            np.testing.assert_array_equal(files.leaves(restored)[name], leaf)


def test_jax_arrays_are_written_too(tmp_path):
    scale, kernel = np.arange(3, dtype=np.float32), np.ones((2, 2), np.float32)
    given = {"scale": jnp.asarray(scale), "kernel": jnp.asarray(kernel, jnp.bfloat16)}
    wanted = {"scale": scale, "kernel": kernel.astype(files.BFLOAT16)}
    folder = write_t5x(tmp_path, {"target": given, "state": {"step": jnp.int32(3)}})
    assert_same(read_t5x(folder), {"target": wanted, "state": {"step": np.int32(3)}})


@pytest.mark.parametrize("wrong", [{}, {"target": {"a": np.zeros(2)}}, {"state": {"step": 1}}])
def test_a_tree_that_is_no_state_is_not_written(tmp_path, wrong):
    with pytest.raises(WeightsError, match="parameters under `target`"):
        write_t5x(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_chunks_are_at_most_64_mib_and_divide_the_shape():
    assert zarr.chunk_shape((512, 384), 4) == (512, 384)
    assert zarr.chunk_shape((32128, 1024), 4) == (16064, 1024)
    assert zarr.chunk_shape((2, 4096, 4096), 4) == (2, 2048, 4096)
    assert zarr.chunk_shape((), 4) == ()


# --- into a model ----------------------------------------------------------------------------


class Little(nnx.Module):
    def __init__(self):
        self.embedding = nnx.Param(jnp.zeros((5, 7)))
        self.wi = nnx.Param(jnp.zeros((6, 4)))
        self.scale = nnx.Param(jnp.zeros(6))


RULES = [
    Rule("decoder/token_embedder/embedding", "embedding"),
    Rule("encoder/layers_0/mlp/wi_0/kernel", "wi"),
    Rule("encoder/encoder_norm/scale", "scale"),
]


def abstract():
    return nnx.state(nnx.eval_shape(Little))


def test_a_model_is_filled(tmp_path, tree):
    checkpoint = open_t5x(files.write_legacy(tmp_path / "c", tree))
    state = fill(checkpoint, abstract(), RULES)
    np.testing.assert_array_equal(
        state["embedding"][...], tree["target"]["decoder"]["token_embedder"]["embedding"]
    )


def test_one_error_for_the_folder_and_the_model(tmp_path, tree):
    """A missing chunk, a wrong shape, an unknown parameter and one that is not there."""
    encoder = tree["target"]["encoder"]
    encoder["extra"] = {"kernel": np.zeros((2, 3), np.float32)}
    encoder["layers_0"]["mlp"]["wi_0"]["kernel"] = np.zeros((6, 5), np.float32)
    folder = files.write_legacy(tmp_path / "c", tree)
    (folder / EMBEDDING.replace("/", ".") / "0.0").unlink()
    with pytest.raises(WeightsError) as error:
        fill(open_t5x(folder), abstract(), [*RULES[:2], Rule("nothing", "scale")])
    message = str(error.value)
    assert "in 5 places" in message
    assert f"{EMBEDDING} lacks chunk 0.0 (of 1)" in message
    assert "encoder/layers_0/mlp/wi_0/kernel becomes (6, 5), wi is (6, 4)" in message
    assert "encoder/extra/kernel (2, 3) is matched by no rule" in message
    assert "encoder/encoder_norm/scale (6,) is matched by no rule" in message
    assert "scale (6,) is filled by nothing" in message
