"""The table of T5X's names: every parameter of each form, at tiny width and at the published."""

import math

import numpy as np
import pytest
import t5x_files as files
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.t5x import open_t5x, read_t5x, unflatten, write_t5x
from musicjax.hub.t5x_layouts import t5x_names, t5x_target, transformer_from_t5x
from musicjax.nn.forms import form
from musicjax.nn.transformer import Transformer

TINY = {"d_model": 8, "num_heads": 2, "head_dim": 3, "mlp_dim": 10}
TINY |= {"num_encoder_layers": 1, "num_decoder_layers": 1}


def abstract(config):
    return nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))), nnx.Param)


def shapes_of_mt3(rows, emb=512, joined=384, mlp=1024, layers=8, frame=512):
    """The parameters of mt3/network.py as the published configuration makes them."""
    found = {
        "encoder/continuous_inputs_projection/kernel": (frame, emb),
        "encoder/encoder_norm/scale": (emb,),
        "decoder/decoder_norm/scale": (emb,),
        "decoder/token_embedder/embedding": (rows, emb),
        "decoder/logits_dense/kernel": (emb, rows),
    }

    def attention(path):
        for name in ("query", "key", "value"):
            found[f"{path}/{name}/kernel"] = (emb, joined)
        found[f"{path}/out/kernel"] = (joined, emb)

    for i in range(layers):
        encoder, decoder = f"encoder/layers_{i}", f"decoder/layers_{i}"
        attention(f"{encoder}/attention")
        attention(f"{decoder}/self_attention")
        attention(f"{decoder}/encoder_decoder_attention")
        for path in (encoder, decoder):
            found[f"{path}/mlp/wi_0/kernel"] = found[f"{path}/mlp/wi_1/kernel"] = (emb, mlp)
            found[f"{path}/mlp/wo/kernel"] = (mlp, emb)
            found[f"{path}/pre_mlp_layer_norm/scale"] = (emb,)
        found[f"{encoder}/pre_attention_layer_norm/scale"] = (emb,)
        found[f"{decoder}/pre_self_attention_layer_norm/scale"] = (emb,)
        found[f"{decoder}/pre_cross_attention_layer_norm/scale"] = (emb,)
    return found


@pytest.mark.parametrize(("rows", "parameters"), [(1536, 45_896_704), (1664, 46_027_776)])
def test_the_published_models_name_by_name(rows, parameters):
    """Names, shapes and count, without an array being made."""
    config = form("mt3", vocab_size=rows, input_dim=512)
    wanted = shapes_of_mt3(rows)
    target = {
        ".".join(map(str, keys)): variable.get_value().shape
        for keys, variable in nnx.to_flat_state(abstract(config))
    }
    names = t5x_names(config)
    assert sorted(names.values()) == sorted(target)
    assert {theirs: target[ours] for theirs, ours in names.items()} == wanted
    assert len(wanted) == 189
    assert sum(math.prod(shape) for shape in wanted.values()) == parameters


def test_the_larger_model_of_2022():
    sizes = {"d_model": 768, "num_heads": 12, "mlp_dim": 2048}
    sizes |= {"num_encoder_layers": 12, "num_decoder_layers": 12}
    config = form("mt3", vocab_size=1536, input_dim=512, **sizes)
    wanted = shapes_of_mt3(1536, 768, 768, 2048, 12)
    assert set(t5x_names(config)) == set(wanted)
    assert sum(map(math.prod, wanted.values())) == 200_980_992


def random(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def state_of(target):
    return {"state": {"step": np.int32(7)}, "target": files.nested(target)}


@pytest.mark.parametrize("layout", ["legacy", "orbax"])
def test_a_tiny_mt3_of_either_layout(tmp_path, layout):
    config = form("mt3", vocab_size=16, input_dim=5, **TINY)
    target = random(shapes_of_mt3(16, 8, 6, 10, 1, 5))
    write = {"legacy": files.write_legacy, "orbax": files.write_orbax}[layout]
    folder = write(tmp_path / "checkpoint_7", state_of(target))
    model = transformer_from_t5x(open_t5x(folder), config)
    out = model.decoder.layers[0].cross_attention.out.kernel[...]
    kernel = target["decoder/layers_0/encoder_decoder_attention/out/kernel"]
    np.testing.assert_array_equal(out, kernel)
    back = t5x_target(model, config)
    assert back.keys() == target.keys()
    written = write_t5x(tmp_path / "back", {"target": unflatten(back), "state": {"step": 7}})
    again = files.leaves(read_t5x(written)["target"])
    for name, array in target.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_tiny_t5_with_its_bias_and_its_shared_table(tmp_path):
    config = form("t5", vocab_size=16, relative_buckets=4, **TINY)
    names = t5x_names(config)
    assert names["token_embedder/embedding"] == "token_embedder.embedding"
    shapes = {
        ".".join(map(str, keys)): variable.get_value().shape
        for keys, variable in nnx.to_flat_state(abstract(config))
    }
    assert sorted(shapes) == sorted(names.values())
    assert shapes[names["decoder/relpos_bias/rel_embedding"]] == (2, 4)
    assert "decoder/logits_dense/kernel" not in names
    assert "encoder/layers_0/mlp/wi/kernel" in names
    target = random({theirs: shapes[ours] for theirs, ours in names.items()})
    folder = files.write_legacy(tmp_path / "c", state_of(target))
    back = t5x_target(transformer_from_t5x(open_t5x(folder), config), config)
    for name, array in target.items():
        np.testing.assert_array_equal(back[name], array)


def test_a_checkpoint_of_another_model_is_told_name_by_name(tmp_path):
    config = form("mt3", vocab_size=16, input_dim=5, **TINY)
    target = random(shapes_of_mt3(24, 8, 6, 10, 1, 5))
    target["decoder/relpos_bias/rel_embedding"] = np.zeros((2, 4), np.float32)
    del target["encoder/encoder_norm/scale"]
    folder = files.write_legacy(tmp_path / "c", state_of(target))
    (folder / "target.encoder.layers_0.mlp.wo.kernel" / "0.0").unlink()
    with pytest.raises(WeightsError) as error:
        transformer_from_t5x(open_t5x(folder), config)
    message = str(error.value)
    assert "in 5 places" in message
    assert "target/encoder/layers_0/mlp/wo/kernel lacks chunk 0.0" in message
    assert (
        "token_embedder/embedding becomes (24, 8), token_embedder.embedding is (16, 8)" in message
    )
    assert "logits_dense/kernel becomes (8, 24), head is (8, 16)" in message
    assert "decoder/relpos_bias/rel_embedding (2, 4) is matched by no rule" in message
    assert "encoder.norm.scale (8,) is filled by nothing" in message


def test_forms_without_names_in_t5x():
    for name in ("bart", "bert", "roberta"):
        with pytest.raises(WeightsError, match="T5's form only"):
            t5x_names(form(name, vocab_size=16, **TINY))
    config = form("t5", vocab_size=16, **TINY)
    other = form("t5.1.1", vocab_size=16, **TINY)
    with pytest.raises(WeightsError, match=r"mlp.wi.kernel is missing; .*head has no name in T5X"):
        t5x_target(abstract(other), config)


def test_a_vocabulary_that_does_not_fit_is_told_by_name(tmp_path):
    """The checkpoint of the piano model, asked to become MT3."""
    names = {1536: "mt3 (1 velocity bin)", 1664: "ismir2021 (127 velocity bins)"}
    target = random(shapes_of_mt3(1664, 8, 6, 10, 1, 5))
    checkpoint = open_t5x(files.write_legacy(tmp_path / "c", state_of(target)))
    for rows, sentence in ((1536, r"has mt3 \(1 velocity bin\)"), (99, "has one of 99 rows")):
        config = form("mt3", vocab_size=rows, input_dim=5, **TINY)
        with pytest.raises(WeightsError, match=f"the vocabulary of ismir2021.*{sentence}"):
            transformer_from_t5x(checkpoint, config, vocabularies=names)
