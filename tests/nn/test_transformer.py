"""What must hold in every form of the Transformer, whatever the weights."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.decode.protocol import DecodeCache
from musicjax.errors import ConfigError
from musicjax.hub.typed_json import from_json, to_json
from musicjax.nn import attention as attention_room
from musicjax.nn.attention import Attention, attend
from musicjax.nn.embed import RelativeBias, sinusoids
from musicjax.nn.forms import form
from musicjax.nn.transformer import Transformer, shift_right
from musicjax.types import Policy

SIZES = {
    "vocab_size": 31,
    "d_model": 16,
    "num_heads": 2,
    "head_dim": 6,
    "mlp_dim": 24,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}
BUCKETS = {"relative_buckets": 8, "relative_distance": 10}
FORMS = {
    "t5": form("t5", **SIZES, **BUCKETS),
    "t5.1.1": form("t5.1.1", **SIZES, **BUCKETS),
    "mt3": form("mt3", **SIZES, input_dim=5),
    "bart": form("bart", **SIZES, max_positions=20),
    "bert": form("bert", **SIZES | {"num_decoder_layers": 0}, max_positions=20),
    "roberta": form("roberta", **SIZES | {"num_decoder_layers": 0}, max_positions=20),
    "alone": form("mt3", **SIZES | {"num_encoder_layers": 0}),
}
DECODERS = ["t5", "bart", "alone"]  # relative, learned and sinusoid positions


def quick_key(seed):
    """A key whose draws compile in no time; the usual ones take seconds a model."""
    return jax.random.key(seed, impl="unsafe_rbg")


@cache
def weights(config):
    """The split model with random numbers everywhere, norms and biases too."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, shape):
        value = rng.normal(size=shape) / (np.sqrt(shape[0]) if len(shape) > 1 else 5)
        return jnp.asarray(value + (path[-1] == "scale"), jnp.float32)

    leaves = [(p, v.replace(draw(p, v.get_value().shape))) for p, v in nnx.to_flat_state(state)]
    return graph, nnx.from_flat_state(leaves)


def build(config):
    return nnx.merge(*weights(config))


@cache
def run(config, method):
    """A method of the model, jitted once for all tests."""
    graph, state = weights(config)
    jitted = jax.jit(lambda state, *args: getattr(nnx.merge(graph, state), method)(*args))
    return lambda *args: jitted(state, *args)


def given(config, batch=2, length=9, seed=0):
    """Inputs of the encoder and tokens for the decoder."""
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.integers(2, 31, (batch, length)), jnp.int32)
    if config.input_dim:
        inputs = jnp.asarray(rng.normal(size=(batch, length, config.input_dim)), jnp.float32)
    return inputs, jnp.asarray(rng.integers(2, 31, (batch, 7)), jnp.int32)


MASK = jnp.arange(9) < jnp.array([9, 6])[:, None]


def encode(config):
    """(encoded, its mask), or two times None without an encoder."""
    if not config.num_encoder_layers:
        return None, None
    return run(config, "encode")(given(config)[0], MASK), MASK


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


# Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"vocab_size": 1536}, 45_896_704),  # MT3
        ({"vocab_size": 1664}, 46_027_776),  # piano, ISMIR 2021
        (
            {"vocab_size": 1536, "d_model": 768, "num_heads": 12, "mlp_dim": 2048}
            | {"num_encoder_layers": 12, "num_decoder_layers": 12},
            200_980_992,  # ISMIR 2022
        ),
    ],
)
def test_published_sizes(fields, count):
    config = form("mt3", input_dim=512, **fields)
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


def test_a_config_survives_a_file():
    for config in FORMS.values():
        assert from_json(type(config), to_json(config)) == config


def test_random_start_is_as_wide_as_t5_wants():
    sizes = {"d_model": 64, "head_dim": 32, "vocab_size": 500}
    sizes |= {"num_encoder_layers": 1, "num_decoder_layers": 0}
    config = form("t5.1.1", **SIZES | sizes)
    state = jax.jit(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(quick_key(0)))))()
    layer = state["encoder"]["layers"][0]
    spread = {
        1.0: state["token_embedder"]["embedding"],
        64**-0.5: layer["attention"]["key"]["kernel"],
        (64 * 32) ** -0.5: layer["attention"]["query"]["kernel"],
        24**-0.5: layer["mlp"]["wo"]["kernel"],
    }
    for expected, values in spread.items():
        np.testing.assert_allclose(np.std(values[...]), expected, rtol=0.06)


# Positions -----------------------------------------------------------------------------------


def test_sinusoids_are_sines_then_cosines():
    table = sinusoids(5, 8)
    rate = 10000 ** (-2 / 3)
    close(
        table[3],
        np.r_[np.sin(3 * rate ** np.arange(0, 2, 0.5)), np.cos(3 * rate ** np.arange(0, 2, 0.5))],
    )


def test_relative_bias_looks_up_the_distance():
    bias = RelativeBias(2, 32, 128, bidirectional=False, rngs=nnx.Rngs(0))
    table, out = bias.embedding[...], bias(jnp.array([[0, 5], [40, 500]]), jnp.arange(6))
    assert out.shape == (2, 2, 2, 6)
    close(out[0, :, 1], table[:, [5, 4, 3, 2, 1, 0]])
    close(out[0, :, 0], table[:, [0] * 6])  # keys that come later
    close(out[1, :, 1], table[:, [31] * 6])  # beyond the last distance


# Attention -----------------------------------------------------------------------------------


def test_attention_weights_are_dropped_alike_for_all_queries():
    layer = Attention(
        8, 2, 4, scaled=False, bias=False, dropout=0.25, init=nnx.initializers.lecun_normal(),
        policy=Policy(), rngs=nnx.Rngs(0),
    )  # fmt: skip
    x, key = jax.random.normal(jax.random.key(0), (3, 5, 8)), jax.random.key(1)
    keys, values = layer.keys_values(x)
    query = layer.query(x).reshape(3, 5, 2, 4)
    shares = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, keys))
    keep = jax.random.bernoulli(key, 0.75, (3, 5, 2, 1))[..., 0].transpose(0, 2, 1)[:, :, None]
    read = jnp.einsum("bhts,bshk->bthk", shares * keep / 0.75, values)
    close(layer(x, keys, values, key=key), layer.out(read.reshape(3, 5, 8)))


def test_a_query_that_may_see_nothing_reads_the_mean():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 6))
    out = attend(query, key, value, mask=jnp.zeros((1, 1, 1, 4), bool))
    close(out, jnp.broadcast_to(value.mean(1, keepdims=True), value.shape))


def test_cudnn_is_chosen_where_it_is_exact(monkeypatch):
    class Backend:
        platform_version = "PJRT C API\ncuda 12090"

    def can(dtype=jnp.bfloat16, heads=(2, 64), lengths=(8, 8), bias=None, mask=None):
        q, k = (jnp.zeros((3, n, *heads), dtype) for n in lengths)
        return attention_room.cudnn_can(
            q,
            k,
            None if bias is None else jnp.zeros((bias, heads[0], *lengths)),
            None if mask is None else jnp.ones((3, 1, 1, lengths[1]), bool),
        )

    assert not can()  # a CPU
    monkeypatch.setattr(jax.extend.backend, "get_backend", Backend)
    assert can() and can(lengths=(7, 9)) and can(bias=1) and can(mask=1)
    assert not can(jnp.float32)
    assert not can(heads=(2, 12)) and not can(heads=(2, 256))
    assert not can(lengths=(7, 8), bias=1) and not can(lengths=(8, 9), mask=1)
    assert not can(bias=3) and not can(bias=1, mask=1)  # no gradient of the bias
    assert not can(lengths=(1, 8))


# The whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mt3", "roberta"])
def test_what_stands_at_padding_is_not_read(name):
    config = FORMS[name]
    inputs, tokens = given(config)
    there = MASK.reshape(2, 9, *[1] * (inputs.ndim - 2))
    other = jnp.where(there, inputs, given(config, seed=1)[0])
    assert not np.array_equal(inputs, other)
    encoded = run(config, "encode")(inputs, MASK)
    close(run(config, "encode")(other, MASK)[MASK], encoded[MASK])
    close(run(config, "encode")(inputs[1:, :6])[0], encoded[1, :6])  # the padding cut off
    if config.num_decoder_layers:
        logits = run(config, "decode")(tokens, encoded, MASK)
        loud = jnp.where(MASK[..., None], encoded, 100.0)
        close(run(config, "decode")(tokens, loud, MASK), logits)


def test_roberta_counts_only_the_tokens_that_exist():
    tokens = given(FORMS["roberta"], 2, 6)[0]
    shifted = jnp.pad(tokens, ((0, 0), (3, 0)), constant_values=1)
    mask = jnp.broadcast_to(jnp.arange(9) >= 3, (2, 9))
    encode = run(FORMS["roberta"], "encode")
    close(
        encode(shifted, mask)[:, 3:], encode(jnp.roll(shifted, -3, 1), jnp.roll(mask, -3, 1))[:, :6]
    )


def test_token_types_are_read():
    config = FORMS["bert"]
    graph, state = weights(config)

    @jax.jit
    def encode(types):
        return nnx.merge(graph, state).encode(given(config)[0], MASK, token_types=types)

    zero, one = (encode(jnp.full((2, 9), kind)) for kind in (0, 1))
    close(encode(None), zero)
    assert np.abs(one - zero).max() > 0.01


@pytest.mark.parametrize("name", DECODERS)
def test_a_token_does_not_hear_later_ones(name):
    config = FORMS[name]
    tokens, others = given(config)[1], encode(config)
    changed = tokens.at[:, 4:].set((tokens[:, 4:] + 3) % 31)
    plain, after = (run(config, "decode")(t, *others) for t in (tokens, changed))
    close(after[:, :4], plain[:, :4])
    assert np.abs(after[:, 4] - plain[:, 4]).max() > 0.01


def test_jit_equals_eager():
    config = FORMS["mt3"]
    model, inputs = build(config), given(config)[0]
    close(model.encode(inputs, MASK), run(config, "encode")(inputs, MASK))


def test_shift_right():
    tokens = jnp.array([[5, 6, 1], [7, 1, 0]])
    np.testing.assert_array_equal(shift_right(tokens, 2), [[2, 5, 6], [2, 7, 1]])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_bfloat16_hears_about_the_same(name):
    config = FORMS[name]
    half = nnx.split(
        nnx.eval_shape(
            lambda: Transformer(replace(config, policy=Policy(dtype="bfloat16")), rngs=nnx.Rngs(0))
        )
    )[0]
    inputs, tokens = given(config)

    @jax.jit
    def everything(state):
        model = nnx.merge(half, state)
        encoded = model.encode(inputs, MASK)
        cache = model.init_cache(encoded, MASK, max_length=4)
        stepped, after = model.step(tokens[:, 0], cache)
        return encoded, cache, after, stepped, model.decode(tokens, encoded, MASK)

    encoded, cache, after, stepped, logits = everything(weights(config)[1])
    exact = run(config, "decode")(tokens, *encode(config))
    assert encoded.dtype == cache.layers[0].keys.dtype == after.layers[0].keys.dtype == "bfloat16"
    assert logits.dtype == stepped.dtype == jnp.float32
    spread = float(jnp.std(exact))
    assert float(jnp.abs(logits - exact).max()) < 0.1 * spread
    assert float(jnp.abs(stepped - exact[:, 0]).max()) < 0.1 * spread


# Decoding ------------------------------------------------------------------------------------


@cache
def stepping(config):
    """`stepping(config)(tokens (B, T), cache)`: logits of one token after the other."""
    graph, state = weights(config)

    @jax.jit
    def walk(state, tokens, cache):
        model = nnx.merge(graph, state)

        def one(cache, column):
            logits, cache = model.step(column, cache)
            return cache, logits

        cache, logits = jax.lax.scan(one, cache, tokens.T)
        return logits.swapaxes(0, 1), cache

    return lambda tokens, cache: walk(state, tokens, cache)


def fresh(config, others, max_length):
    graph, state = weights(config)
    make = jax.jit(
        lambda state: nnx.merge(graph, state).init_cache(*others, batch=2, max_length=max_length)
    )
    return make(state)


@pytest.mark.parametrize("name", DECODERS)
def test_step_by_step_equals_all_at_once(name):
    config = FORMS[name]
    tokens, others = given(config)[1], encode(config)
    cache = fresh(config, others, 12)
    assert isinstance(cache, DecodeCache)
    logits, cache = stepping(config)(tokens, cache)
    close(logits, run(config, "decode")(tokens, *others), 1e-4)
    np.testing.assert_array_equal(cache.position, [7, 7])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_rows_go_on_from_their_own_positions(name):
    config = FORMS[name]
    tokens, others = given(config)[1], encode(config)
    expected = run(config, "decode")(tokens, *others)
    lengths = jnp.array([2, 4])
    prompt = jnp.where(jnp.arange(4) < lengths[:, None], tokens[:, :4], 9)
    logits, cache = run(config, "extend")(prompt, fresh(config, others, 8), lengths)
    close(logits[0, :2], expected[0, :2], 1e-4)
    close(logits[1], expected[1, :4], 1e-4)
    rest = jnp.stack([tokens[0, 2:5], tokens[1, 4:7]])
    logits, cache = stepping(config)(rest, cache)
    close(logits[0], expected[0, 2:5], 1e-4)
    close(logits[1], expected[1, 4:], 1e-4)
    np.testing.assert_array_equal(cache.position, [5, 7])


def test_rows_change_places_and_slots_are_refilled():
    config = FORMS["t5"]
    tokens, others = given(config)[1], encode(config)
    expected, step = run(config, "decode")(tokens, *others), stepping(config)
    _, cache = step(tokens[:, :3], fresh(config, others, 10))
    rows = jnp.array([1, 0, 1])
    swapped = cache.take(rows)
    logits, _ = step(tokens[rows, 3:5], swapped)
    close(logits, expected[rows, 3:5], 1e-4)
    # Row 0 starts anew with the second item; the row past the end is passed over.
    anew = fresh(config, others, 1).take(jnp.array([1, 0]))
    mixed = swapped.put(jnp.array([0, 3]), anew)
    np.testing.assert_array_equal(mixed.position, [0, 3, 3])
    logits, _ = step(jnp.concatenate([tokens[1:, :2], tokens[:, 3:5]]), mixed)
    close(logits, jnp.concatenate([expected[1:, :2], expected[:, 3:5]]), 1e-4)


def test_a_cache_grows_and_is_left_alone_past_its_end():
    config = FORMS["bart"]
    tokens, others = given(config)[1], encode(config)
    expected, step = run(config, "decode")(tokens, *others), stepping(config)
    _, cache = step(tokens[:, :3], fresh(config, others, 3))
    logits, grown = step(tokens[:, 3:], cache.resized(7))
    close(logits, expected[:, 3:], 1e-4)
    assert grown.max_length == 7 and grown.resized(3).max_length == 3
    _, beyond = step(tokens[:, :3], cache)
    close(beyond.layers, cache.layers, 0)


# Training ------------------------------------------------------------------------------------


@cache
def trained(config):
    """Mean squared logits of a batch and their gradient, with the config's dropout."""
    graph = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[0]
    inputs, tokens = given(config)

    @jax.jit
    @jax.value_and_grad
    def value(state):
        model, keys = nnx.merge(graph, state), jax.random.split(quick_key(3))
        others = None, None
        if config.num_encoder_layers:
            others = model.encode(inputs, MASK, train=True, key=keys[0]), MASK
        return (model.decode(tokens, *others, train=True, key=keys[1]) ** 2).mean()

    return value(weights(replace(config, scan_layers=False, remat="none", dropout=0.1))[1])


@pytest.mark.parametrize(
    ("name", "dropout", "scan", "remat"),
    [("alone", 0.1, True, "dots"), ("t5", 0.0, False, "full")],
)
def test_scanned_and_recomputed_layers_read_the_same_weights(name, dropout, scan, remat):
    config = replace(FORMS[name], dropout=dropout)
    close(trained(replace(config, scan_layers=scan, remat=remat)), trained(config))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_gradients_reach_every_parameter(name):
    value, gradients = trained(replace(FORMS[name], dropout=0.0))
    assert np.isfinite(value)
    silent = [
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(gradients)
        if float(jnp.abs(leaf.get_value()).max()) < 1e-7
    ]
    # The softmax does not see what is added to all keys alike.
    assert all(path.endswith("key.bias") for path in silent), silent


def test_dropout_is_the_same_at_all_positions_and_needs_a_key():
    config = replace(FORMS["mt3"], dropout=0.5, num_encoder_layers=1)
    model, inputs = build(config), given(config)[0]
    ones, nowhere = jnp.ones((2, 6, 16)), jnp.zeros((1, 6), int)
    dropped = model.encoder.embed(ones, nowhere, 6, key=quick_key(0))
    assert {0.0, 2.0} == set(np.unique(dropped[..., :8]))  # sines of position 0 are 0
    assert np.ptp(dropped, axis=1).max() == 0

    @partial(jax.jit, static_argnums=0)
    def encode(train, key):
        return model.encode(inputs, train=train, key=key)

    plain = encode(False, None)
    close(encode(True, None), plain, 0)
    close(encode(False, quick_key(0)), plain, 0)
    first, again, other = (encode(True, quick_key(k)) for k in (0, 0, 1))
    close(first, again, 0)
    assert np.abs(first - other).max() > 0.01


# Sentences -----------------------------------------------------------------------------------


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="there is no Transformer form 'gpt'; it is one of t5"):
        form("gpt")
    with pytest.raises(ConfigError, match="a decoder needs tokens: vocab_size is 0"):
        form("mt3", vocab_size=0)
    with pytest.raises(ConfigError, match=r"dropout is 1\.5"):
        form("mt3", **SIZES, dropout=1.5)
    with pytest.raises(ConfigError, match="are both 0"):
        form("mt3", **SIZES | {"num_encoder_layers": 0, "num_decoder_layers": 0})
    bart, mt3, bert = (build(FORMS[name]) for name in ("bart", "mt3", "bert"))
    with pytest.raises(ConfigError, match=r"inputs: 21 positions, but only 20 were learned"):
        bart.encode(jnp.zeros((1, 21), int))
    with pytest.raises(ConfigError, match="inputs have 4 values a frame; this Transformer reads 5"):
        mt3.encode(jnp.zeros((1, 3, 4)))
    with pytest.raises(ConfigError, match="has no decoder"):
        bert.decode(jnp.zeros((1, 2), int))
    with pytest.raises(ConfigError, match="encoded is NoneType, but the decoder needs"):
        mt3.decode(jnp.zeros((1, 2), int))
    alone = build(FORMS["alone"])
    with pytest.raises(ConfigError, match="has no encoder"):
        alone.encode(jnp.zeros((1, 2), int))
    with pytest.raises(ConfigError, match="init_cache needs batch"):
        alone.init_cache(max_length=4)
