"""CREPE heard live gives what it gives for the whole recording, whatever the blocks."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import ConfigError
from musicjax.infer.stream import PitchFrame, Streamer, can_stream
from musicjax.models.crepe.convert import from_state_dict
from musicjax.models.crepe.decode import decode
from musicjax.models.crepe.model import get_config

TWIN = Path(__file__).parent.parent / "fixtures" / "crepe" / "twin.npz"
NARROW = replace(get_config("tiny"), channels=(16, 2, 3, 4, 5, 6))
COUNT = 40


@pytest.fixture(scope="module")
def model():
    stored = np.load(TWIN)
    weights = {n.removeprefix("weights/"): stored[n] for n in stored.files if "/" in n}
    return from_state_dict(weights, NARROW)[0]


@pytest.fixture(scope="module")
def sound():
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 300 * np.arange(COUNT * 160) / 16000)
    return (0.3 * tone + 0.05 * rng.normal(size=len(tone)) + 0.1).astype(np.float32)


def test_steps_equal_the_whole_recording(model, sound):
    graph, weights = nnx.split(model)
    whole = jax.jit(lambda w, x: nnx.merge(graph, w).activations(x))(weights, sound[None])
    step = jax.jit(lambda w, state, x: nnx.merge(graph, w).stream_step(state, x))
    state, delay, found = model.stream_start(1), model.stream_spec.delay, []
    hops = np.concatenate([sound, np.zeros(delay * 160, np.float32)]).reshape(-1, 1, 160)
    for hop in hops:
        state, heard = step(weights, state, jnp.asarray(hop))
        found.append(heard)
    assert delay == 3 and model.stream_spec.latency_s == pytest.approx(0.04)
    for name in ("pitch", "level_db"):
        joined = np.concatenate([np.asarray(heard[name]) for heard in found[delay:]], axis=1)
        tolerance = 1e-5 if name == "pitch" else 1e-3
        np.testing.assert_allclose(joined, whole[name][:, :COUNT], atol=tolerance)


def test_any_blocks_give_the_same_pitches(model, sound):
    assert can_stream(model)
    streamer = Streamer(model, voicing=0.0)
    told = []
    for size in (1, 160, 128, 1000, 4096):
        streamer.reset()
        parts = [sound[i : i + size] for i in range(0, len(sound) if size > 1 else 800, size)]
        told.append([event for part in parts for event in streamer.feed(part)])
        if size > 1:
            told[-1] += streamer.finish()
    assert streamer.programs == 1
    assert all(isinstance(event, PitchFrame) for event in told[0])
    assert told[0] == told[1][: len(told[0])] and len(told[0]) == 2
    assert told[1] == told[2] == told[3] == told[4] and len(told[1]) == COUNT
    graph, weights = nnx.split(model)
    whole = jax.jit(lambda w, x: nnx.merge(graph, w).activations(x))(weights, sound[None])
    heard = {name: np.asarray(value)[0, :COUNT] for name, value in whole.items()}
    expected = decode(heard, NARROW, decoder="local", voicing=0.0)
    np.testing.assert_allclose([e.f0_hz for e in told[1]], expected.f0_hz, rtol=1e-3)
    np.testing.assert_allclose([e.time_s for e in told[1]], expected.time_s, atol=1e-9)
    np.testing.assert_allclose([e.confidence for e in told[1]], expected.confidence, atol=1e-4)


def test_options_that_need_the_future_are_refused(model):
    with pytest.raises(ConfigError, match="without decoder, leap; it takes voicing"):
        model.stream_reader(decoder="viterbi", leap=0.1)
    with pytest.raises(ConfigError, match="voicing is 2"):
        model.stream_reader(voicing=2.0)
    with pytest.raises(ConfigError, match="no pitch lies between"):
        model.stream_reader(min_hz=3000.0)
