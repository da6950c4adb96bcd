"""Transkun's short cuts when it listens give what the long ways give, in bounded memory."""

import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.infer import SegmentRunner
from musicjax.infer.segments import segments
from musicjax.models.transkun import config as config_room
from musicjax.models.transkun.config import get_config
from musicjax.models.transkun.model import HeardSegments, Transkun

TINY = get_config("tiny")
SECONDS = 48


@pytest.fixture(scope="module")
def model():
    return Transkun(TINY, rngs=nnx.Rngs(0))


def test_one_map_from_tokens_scores_as_upsampling_and_scorer_do(model):
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 4 * 16000)).astype(np.float32)

    @jax.jit
    def run(audio):
        features = model.features(audio)
        prepared = model.prepare()
        tokens = model.listen(features, positions=prepared.positions)
        context = model.encode(features)
        symbol, start, end = jnp.array([[3, 50, 89], [0, 7, 100], [9, 8, 125]])
        heard = HeardSegments(tokens, (jnp.zeros((90, 1), jnp.int16), jnp.zeros((90, 1), bool)))
        described = model.describe(heard, jnp.asarray(0), symbol, start, end)
        ends = model._ends(context[0, symbol, start], context[0, symbol, end])
        scores = model._scores_of(tokens, features.shape[1], prepared)
        return scores, model.scores(context), described["inside"], ends[1][:, 2:]

    short, long, inside, expected = run(audio)
    for name in ("end", "start", "single"):
        a, b = getattr(short, name), getattr(long, name)
        np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()))
    np.testing.assert_allclose(inside, expected, atol=1e-5)


def test_products_of_the_mlps_may_be_rounded(model, monkeypatch):
    """On CPUs; where `auto` finds matrix units."""
    for units in (False, True):
        monkeypatch.setattr(config_room, "has_bfloat16_units", lambda units=units: units)
        assert replace(TINY, mlp_products="auto").mlp_rounded_on_cpu is units
        assert not TINY.mlp_rounded_on_cpu
    features = np.random.default_rng(0).normal(0, 1, (1, 30, *TINY.feature_shape))
    features = jnp.asarray(features, jnp.float32)
    rounding = nnx.clone(model)
    for layer in rounding.layers:
        layer.rounded_on_cpu = True
    exact, found = (np.asarray(jax.jit(m.listen)(features)) for m in (model, rounding))
    assert 0 < np.abs(found - exact).max() < 1e-2 * np.abs(exact).max()


def test_memory_does_not_grow_with_the_recording(model):
    """Neither on the device nor on the host, but for the events that are handed on."""
    runner = SegmentRunner(model, batch_size=2)
    rng = np.random.default_rng(0)
    blocks = (rng.normal(0, 0.1, 16000).astype(np.float32) for _ in range(SECONDS))
    device, host = [], []
    tracemalloc.start()
    for _ in runner.run((0, window) for window in segments(blocks, runner.layout)):
        device.append(sum(array.nbytes for array in jax.live_arrays()))
        host.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
    tracemalloc.stop()
    quarter = len(device) // 4
    assert len(device) > SECONDS / TINY.segment_hop_s
    assert max(device[-quarter:]) <= max(device[quarter : 2 * quarter])
    assert max(host[-quarter:]) < 1.2 * max(host[quarter : 2 * quarter])
