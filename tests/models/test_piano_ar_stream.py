"""The piano transcriber as a stream gives what it gives for the whole recording."""

import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.audio import Audio, load_audio
from musicjax.audio.presets import preset
from musicjax.errors import ConfigError
from musicjax.hub import load_model
from musicjax.infer import CarryingRunner, hear, layout
from musicjax.infer.stream import Streamer, StreamingModel, can_stream, events_to_notes
from musicjax.models.piano_ar import stream
from musicjax.models.piano_ar.config import PianoARConfig, get_config
from musicjax.models.piano_ar.decoding import Reader, decode
from musicjax.models.piano_ar.model import PianoAR

TINY, HOP, FRAMES = get_config("tiny"), 512, 21
FORMS = {
    "small": replace(TINY, transitions=True),
    "small_fast": replace(TINY, conv_ahead=(1, 0, 0), transitions=True, doubt=1.0),
    "none ahead": replace(TINY, conv_ahead=(0, 0, 0)),
    # As published: a mirror image around the recording, one acoustic model, nothing past the LSTM.
    "paper": replace(
        TINY, frontend=PianoARConfig().frontend, two_stacks=False, skip=False, velocity=False
    ),
    # The same network behind the front-end of the public demonstration.
    "demo": replace(
        TINY, frontend=get_config("demo").frontend, two_stacks=False, skip=False, velocity=False
    ),
}


def lively(config):
    """A model whose statistics and biases are not trivial and that changes its mind often."""
    model = PianoAR(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("mean", "bias"):
            drawn = rng.normal(scale=0.3, size=variable.shape)
            variable.set_value(jnp.asarray(drawn, jnp.float32))
    for layer in filter(None, (model.out, model.skip)):
        layer.kernel.set_value(20 * layer.kernel[...])
    return model


@pytest.fixture(scope="module")
def sound():
    rng = np.random.default_rng(1)
    loud = np.repeat(rng.uniform(0, 0.3, (2, FRAMES)), HOP, axis=1)
    return (loud * rng.normal(size=loud.shape)).astype(np.float32)


@pytest.fixture(scope="module", params=FORMS)
def form(request, sound):
    """A model, and what it makes of two whole recordings."""
    model = lively(FORMS[request.param])
    graph, weights = nnx.split(model)
    whole = jax.jit(lambda w, audio: nnx.merge(graph, w).activations(audio))(weights, sound)
    step = jax.jit(lambda w, state, x: nnx.merge(graph, w).stream_step(state, x))
    return types.SimpleNamespace(
        model=model, whole=whole, step=lambda state, x: step(weights, state, x), compiled=step
    )


def test_hop_by_hop_two_streams_give_what_the_whole_gives(form, sound):
    model, delay = form.model, form.model.stream_spec.delay
    state, found = model.stream_start(2), []
    shapes = jax.tree.map(jnp.shape, state)
    for n in range(FRAMES + delay):
        if n == FRAMES:
            state = model.stream_end(state)
        hop = sound[:, n * HOP : (n + 1) * HOP] if n < FRAMES else np.zeros((2, HOP), np.float32)
        state, heard = form.step(state, hop)
        if n >= delay:
            found.append(heard)
    assert jax.tree.map(jnp.shape, state) == shapes
    assert set(found[0]) == set(form.whole)
    for name, expected in form.whole.items():
        got = np.concatenate([heard[name] for heard in found], axis=1)
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)
    assert form.compiled._cache_size() == 1


def test_a_sound_shorter_than_a_window(form, sound):
    """Two hops: both ends of the sound lie in every window."""
    model, delay = form.model, form.model.stream_spec.delay
    state, found = model.stream_start(2), []
    for n in range(2 + delay):
        state = model.stream_end(state) if n == 2 else state
        hop = sound[:, n * HOP : (n + 1) * HOP] if n < 2 else np.zeros_like(sound[:, :HOP])
        state, heard = form.step(state, hop)
        found.append(np.asarray(heard["state"]))
    expected = jax.jit(model.activations)(sound[:, : 2 * HOP])["state"]
    np.testing.assert_allclose(np.concatenate(found[delay:], 1), expected, atol=1e-5)


@pytest.fixture(scope="module")
def streamer():
    return Streamer(lively(TINY))


@pytest.fixture(scope="module")
def streamer_whole():
    return jax.jit(lively(TINY).activations)


@pytest.mark.parametrize("size", [128, 500, 512, 4096, 0])
def test_notes_are_those_of_the_whole_whatever_the_blocks(streamer, streamer_whole, sound, size):
    samples = sound[0, : FRAMES * HOP - 100]
    padded = np.zeros((1, FRAMES * HOP), np.float32)
    padded[0, : len(samples)] = samples
    whole = streamer_whole(padded)
    expected = decode({name: np.asarray(v[0]) for name, v in whole.items()}, TINY)
    assert len(expected) > 20
    streamer.reset()
    rng, events, at = np.random.default_rng(size), [], 0
    while at < len(samples):
        block = samples[at : at + (size or int(rng.integers(128, 4097)))]
        events += streamer.feed(block)
        at += len(block)
    events += streamer.finish()
    assert events_to_notes(events) == expected
    assert streamer.programs == 1


@pytest.fixture(scope="module")
def shipped(root):
    """The weights that come with the package, four seconds of music, and what they make of it."""
    model = load_model("piano_ar.small").model
    samples = load_audio(root / "examples" / "bach_prelude.flac", 16000).samples
    samples = samples[: 4 * 16000 // HOP * HOP]
    graph, weights = nnx.split(model)
    whole = jax.jit(lambda w, audio: nnx.merge(graph, w).activations(audio))(weights, samples[None])
    whole = {name: np.asarray(value[0]) for name, value in whole.items()}
    return types.SimpleNamespace(
        streamer=Streamer(model), samples=samples, whole=whole, notes=decode(whole, model.config)
    )


@pytest.mark.parametrize("size", [128, 4096])
def test_the_shipped_weights_hear_music_as_the_whole_whatever_the_blocks(
    shipped, size, monkeypatch
):
    read, told = Reader.read, []

    def record(self, activations, first_frame):
        told.append(activations)
        return read(self, activations, first_frame)

    monkeypatch.setattr(Reader, "read", record)
    shipped.streamer.reset()
    events = []
    for at in range(0, len(shipped.samples), size):
        events += shipped.streamer.feed(shipped.samples[at : at + size])
    events += shipped.streamer.finish()
    assert set(told[0]) == set(shipped.whole)
    for name, expected in shipped.whole.items():
        found = np.concatenate([activations[name] for activations in told])
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    assert len(shipped.notes) > 15
    assert events_to_notes(events) == shipped.notes


def test_a_recording_in_windows_is_what_it_is_in_one(streamer_whole, sound):
    """What it said last goes from window to window, and never from one recording to the next."""
    model = lively(TINY)
    plan = layout(16000, HOP, context_s=model.context_s, window_s=0.6, batch_size=3)
    runner = CarryingRunner(model, plan)
    recordings = [Audio(row[None], 16000) for row in sound]
    for row, heard in zip(sound, hear(runner, recordings, 16000), strict=True):
        whole = streamer_whole(row[None])
        assert heard.activations["state"].dtype == np.float32
        np.testing.assert_allclose(heard.activations["state"], whole["state"][0], atol=1e-5)
        np.testing.assert_allclose(heard.activations["onset"], whole["onset"][0], atol=1e-3)
    assert runner.programs == 1


def test_single_samples_nan_and_a_gap(streamer, sound):
    streamer.reset()
    samples = sound[0, : 2 * HOP]
    events = [e for sample in samples for e in streamer.feed(sample[None])]
    assert (streamer.time_s, events) == (0.064, [])
    with pytest.raises(ValueError, match="not numbers"):
        streamer.feed(np.array([0.0, np.nan], np.float32))
    before = streamer.skip(16000) + streamer.feed(sound[0])
    after = streamer.finish()
    assert {type(e).__name__ for e in before + after} == {"NoteOn", "NoteOff"}
    times = [e.time_s for e in before + after]
    assert times == sorted(times)
    assert max(times) == pytest.approx(1.064 + FRAMES * HOP / 16000)
    assert len(events_to_notes(before + after)) > 10


def test_latency_is_told_before_it_is_heard():
    assert can_stream(PianoAR)
    model = nnx.eval_shape(lambda: PianoAR(TINY, rngs=nnx.Rngs(0)))
    assert isinstance(model, StreamingModel)
    latency = {
        tag: stream.stream_spec(get_config(tag)).latency_s
        for tag in ("small", "small_fast", "paper", "demo")
    }
    assert latency == {"small": 0.16, "small_fast": 0.096, "paper": 0.16, "demo": 0.16}
    assert stream.stream_spec(replace(TINY, conv_ahead=(0, 0, 0))).latency_s == 0.064


@pytest.mark.parametrize(
    ("front_end", "word"),
    [("onsets_frames", "drop_last_frame"), ("mt3", "padding"), ("ttmr_pp", "dynamic_range")],
)
def test_a_front_end_that_needs_the_whole_is_refused(front_end, word):
    config = replace(TINY, frontend=preset(front_end))
    with pytest.raises(ConfigError, match=word):
        stream.stream_spec(config)


def test_long_after_the_beginning_it_hears_the_same(form, sound):
    """Two years on, a step gives what it gave: no counter runs over."""
    state = form.model.stream_start(2)
    for n in range(12):
        state, _ = form.step(state, sound[:, n * HOP : (n + 1) * HOP])
    late = {**state, "frame": jnp.asarray(stream.UNKNOWN - 100, jnp.int32)}
    now, then = (form.step(s, sound[:, 12 * HOP : 13 * HOP])[1] for s in (state, late))
    np.testing.assert_allclose(then["state"], now["state"], atol=1e-6)
