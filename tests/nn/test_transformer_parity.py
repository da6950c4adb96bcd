"""The Transformer against implementations that are not ours: every layer, then the whole.

The fixtures were made by tests/fixtures/transformer/make_*.py from transformers (T5 1.0 and 1.1,
BART, BERT, RoBERTa) and from MT3's own network.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.transformers_layouts import transformer_from
from musicjax.nn.embed import relative_buckets
from musicjax.nn.forms import form
from musicjax.nn.transformer import Layer, Transformer

LAYER, MODEL = 1e-5, 1e-4  # tolerances, relative and absolute, in float32


@pytest.fixture(scope="module")
def fixture(root):
    """`fixture("t5")`: the arrays of a file, its weights, and its config.json."""

    def read(name):
        with np.load(root / "tests" / "fixtures" / "transformer" / f"{name}.npz") as file:
            arrays = dict(file)
        weights = {k.split("/", 1)[1]: v for k, v in arrays.items() if "/" in k}
        weights = {k: np.float32(v) if v.dtype == np.float16 else v for k, v in weights.items()}
        config = json.loads(str(arrays.pop("config", "{}")))
        given = {k: jnp.asarray(v) for k, v in arrays.items() if "/" not in k}
        return given, weights, config

    return read


@pytest.fixture
def listening(monkeypatch):
    """`listening(f, *args)`: f jitted, and what every layer gave on the way."""
    original = Layer.__call__

    def run(f, *args):
        def traced(*args):
            heard = []

            def call(self, *args, **fields):
                out = original(self, *args, **fields)
                heard.append(out[0])
                return out

            with monkeypatch.context() as patch:
                patch.setattr(Layer, "__call__", call)
                return f(*args), heard

        return jax.jit(traced)(*args)

    return run


def close(ours, theirs, tolerance, mask=None):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if mask is not None:
        ours, theirs = ours[..., mask, :], theirs[..., mask, :]
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def check(model, arrays, listening, inputs, mask=None, token_types=None, seen=None):
    """Encoder and decoder of a model, layer by layer and whole; `seen` marks tokens compared."""
    encoded, layers = listening(
        lambda *given: model.encode(given[0], given[1], token_types=given[2]),
        inputs,
        mask,
        token_types,
    )
    assert len(layers) == len(arrays["encoder_blocks"])
    close(jnp.stack(layers), arrays["encoder_blocks"], LAYER, mask)
    close(encoded, arrays["encoded"], MODEL, mask)
    if model.decoder is None:
        return
    read = arrays["read"]
    logits, layers = listening(model.decode, read, arrays["encoded"], mask)
    assert len(layers) == len(arrays["decoder_blocks"])
    close(jnp.stack(layers), arrays["decoder_blocks"], LAYER, seen)
    close(logits, arrays["logits"], MODEL, seen)
    whole = jax.jit(lambda: model.decode(read, model.encode(inputs, mask), mask))()
    close(whole, arrays["logits"], MODEL, seen)


@pytest.mark.parametrize("name", ["t5", "t5_v11", "bart", "bert", "roberta"])
def test_every_layer_gives_what_transformers_gives(name, fixture, listening):
    arrays, weights, description = fixture(name)
    model = transformer_from(weights, description)
    types = arrays.get("token_types")
    check(model, arrays, listening, arrays["tokens"], arrays["mask"], types)


# Our name of each of MT3's parameters.
MT3_NAMES = [
    (r"/", "."),
    (r"layers_(\d+)", r"layers.\1"),
    (r"encoder\.continuous_inputs_projection", "input_projection"),
    (r"decoder\.token_embedder", "token_embedder"),
    (r"decoder\.logits_dense\.kernel", "head"),
    (r"(encoder|decoder)_norm", "norm"),
    (r"pre_(self_)?attention_layer_norm", "attention_norm"),
    (r"pre_cross_attention_layer_norm", "cross_attention_norm"),
    (r"pre_mlp_layer_norm", "mlp_norm"),
    (r"self_attention", "attention"),
    (r"encoder_decoder_attention", "cross_attention"),
]


def test_every_layer_gives_what_mt3_gives(fixture, listening):
    arrays, weights, _ = fixture("mt3")
    config = form(
        "mt3",
        vocab_size=64,
        d_model=24,
        num_heads=4,
        head_dim=8,
        mlp_dim=40,
        num_encoder_layers=3,
        num_decoder_layers=2,
        input_dim=24,
    )
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    named = {}
    for name, value in weights.items():
        for pattern, ours in MT3_NAMES:
            name = re.sub(pattern, ours, name)
        named[name] = value
    leaves = [(".".join(map(str, path)), path, leaf) for path, leaf in nnx.to_flat_state(state)]
    assert named.keys() == {name for name, _, _ in leaves}
    filled = [(path, leaf.replace(jnp.asarray(named[name]))) for name, path, leaf in leaves]
    model = nnx.merge(graph, nnx.from_flat_state(filled))
    # MT3 also hides padding from itself, which changes nothing but the logits at padding.
    check(model, arrays, listening, arrays["frames"], seen=arrays["targets"] > 0)


@pytest.mark.parametrize("way", ["both", "back"])
def test_buckets_are_those_of_t5(way, fixture):
    arrays, _, _ = fixture("buckets")
    table = relative_buckets(32, 128, way == "both")
    np.testing.assert_array_equal(table[np.clip(arrays["distance"], -128, 128) + 128], arrays[way])


def test_weights_that_do_not_fit_are_all_named(fixture):
    _, weights, description = fixture("t5")
    weights["decoder.block.9.layer.0.layer_norm.weight"] = weights.pop("shared.weight")
    with pytest.raises(WeightsError, match=r"layers\.9.*token_embedder\.embedding .* by nothing"):
        transformer_from(weights, description)
    with pytest.raises(WeightsError, match="model_type is 'gpt2'; the Transformer is read from t5"):
        transformer_from(weights, {"model_type": "gpt2"})
