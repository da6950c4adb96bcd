"""The room on the Transformer that systems use: the same as without a cache, in slots, by beams."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.decode import (
    BeamConfig,
    DecodeCache,
    GenerateConfig,
    Segment,
    SlotDecoder,
    beam_search,
    generate,
)
from musicjax.nn import Transformer, form, shift_right
from musicjax.types import Policy

SIZES = {
    "vocab_size": 20,
    "d_model": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
}
LENGTH = 14
CONFIG = GenerateConfig(max_length=LENGTH)


@pytest.fixture(scope="module")
def parts():
    """(model, weights, prefill, step) of MT3's form at a tiny size."""
    model = Transformer(form("mt3", input_dim=6, **SIZES), rngs=nnx.Rngs(3))
    model.head[...] *= 12  # random heads say nearly the same everywhere
    graph, weights = nnx.split(model)

    def prefill(weights, frames, max_length):
        model = nnx.merge(graph, weights)
        return model.init_cache(model.encode(frames), max_length=max_length)

    def step(weights, tokens, cache):
        return nnx.merge(graph, weights).step(tokens, cache)

    return model, weights, prefill, step


@pytest.fixture(scope="module")
def frames():
    return jnp.asarray(np.random.default_rng(0).normal(size=(9, 5, 6)), jnp.float32)


@pytest.fixture(scope="module")
def greedy(parts, frames):
    _, weights, prefill, step = parts
    run = jax.jit(lambda w, x: generate(partial(step, w), prefill(w, x, LENGTH), CONFIG))
    return run(weights, frames)


def test_cached_is_teacher_forcing(parts, frames, greedy):
    model, *_ = parts
    assert isinstance(model.init_cache(model.encode(frames), max_length=2), DecodeCache)
    logits = model.decode(shift_right(greedy.tokens, 0), model.encode(frames))
    held = np.arange(LENGTH) < np.asarray(greedy.lengths)[:, None]
    np.testing.assert_array_equal(np.asarray(logits.argmax(-1))[held], greedy.tokens[held])
    gains = jax.nn.log_softmax(logits)
    said = jnp.take_along_axis(gains, greedy.tokens[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(jnp.where(held, said, 0).sum(1), greedy.scores, atol=1e-4)
    assert len({row.tobytes() for row in np.asarray(greedy.tokens)}) > 1


def test_refilled_slots_give_the_batch(parts, frames, greedy):
    _, weights, prefill, step = parts
    decoder = SlotDecoder(prefill, step, CONFIG, slots=2, queue=4)
    out = list(decoder.decode(weights, [Segment(np.asarray(x)) for x in frames]))
    for decoded, row, length in zip(out, greedy.tokens, greedy.lengths, strict=True):
        assert decoded.tokens.tolist() == row[:length].tolist()


def test_one_beam_is_greedy(parts, frames, greedy):
    _, weights, prefill, step = parts

    @jax.jit
    def search(weights, frames):
        cache = prefill(weights, frames, LENGTH)
        return beam_search(partial(step, weights), cache, CONFIG, BeamConfig(num_beams=1))

    np.testing.assert_array_equal(search(weights, frames).tokens[:, 0], greedy.tokens)


def test_half_precision_decodes_from_a_cache(frames):
    """Queries, and what is written to the cache, are of its type whatever dense layers give."""
    config = form("mt3", input_dim=6, policy=Policy(dtype="bfloat16"), **SIZES)
    graph, weights = nnx.split(Transformer(config, rngs=nnx.Rngs(3)))

    @jax.jit
    def run(weights, frames):
        model = nnx.merge(graph, weights)
        cache = model.init_cache(model.encode(frames), max_length=LENGTH)
        first, cache = model.step(jnp.zeros(len(frames), int), cache)
        return first, model.decode(jnp.zeros((len(frames), 1), int), model.encode(frames)), cache

    first, forced, cache = run(weights, frames)
    np.testing.assert_allclose(first, forced[:, 0], atol=0.05)
    assert {x.dtype for x in jax.tree.leaves(cache.layers)} == {jnp.dtype("bfloat16")}
