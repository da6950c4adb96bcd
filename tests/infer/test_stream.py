"""A stream of any blocks gives what the whole recording gives, once compiled, and never grows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import AudioError, ConfigError
from musicjax.infer.stream import (
    NoteOff,
    NoteOn,
    PitchFrame,
    Streamer,
    StreamSpec,
    can_stream,
    events_to_notes,
)

RATE, HOP = 1000, 10


class Loudness(nnx.Module):
    """A frame is the sum of the hop it stands at and of the two that follow; loud is a note."""

    stream_spec = StreamSpec(RATE, HOP, lookahead=3 * HOP)

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def activations(self, audio):
        hops = jnp.abs(audio).reshape(audio.shape[0], -1, HOP).sum(-1) * self.gain[...]
        later = jnp.pad(hops, ((0, 0), (0, 2)))
        return {"loud": (later[:, :-2] + later[:, 1:-1] + later[:, 2:])[..., None]}

    def stream_start(self, batch):
        return {"hops": jnp.zeros((batch, 2)), "spare": jnp.zeros((batch, 2))}

    def stream_step(self, state, samples):
        new = jnp.abs(samples).sum(-1, keepdims=True) * self.gain[...]
        hops = jnp.concatenate([state["hops"], new], axis=1)
        return {**state, "hops": hops[:, 1:]}, {"loud": hops.sum(1)[:, None, None]}

    def stream_end(self, state):
        return state

    def stream_reader(self, threshold=5.0):
        return _Threshold(self.stream_spec, threshold)


class _Threshold:
    def __init__(self, spec, threshold):
        self.spec, self.threshold, self.on, self.frames = spec, threshold, False, []

    def read(self, activations, first_frame):
        (frame,) = activations["loud"][:, 0]
        assert first_frame == len(self.frames)
        self.frames.append(frame)
        was, self.on = self.on, bool(frame > self.threshold)
        if self.on == was:
            return []
        time_s = self.spec.time_s(first_frame)
        return [NoteOn(time_s, 60, 80) if self.on else NoteOff(time_s, 60)]

    def end(self, frame):
        assert frame == len(self.frames)
        return [NoteOff(self.spec.time_s(frame), 60)] if self.on else []


@pytest.fixture(scope="module")
def model():
    return Loudness()


@pytest.fixture(scope="module")
def streamer(model):
    return Streamer(model)


@pytest.fixture
def stream(streamer):
    streamer.reset()
    return streamer


@pytest.fixture(scope="module")
def sound():
    rng = np.random.default_rng(0)
    bursts = np.repeat(rng.random(60) > 0.6, 37)
    return (rng.normal(size=bursts.size) * bursts).astype(np.float32)


def whole(model, sound):
    """Notes of the whole recording, by the reader that a stream has."""
    padded = np.zeros(-(-len(sound) // HOP) * HOP, np.float32)
    padded[: len(sound)] = sound
    reader = model.stream_reader()
    loud = np.asarray(model.activations(padded[None])["loud"][0])
    events = [e for t in range(len(loud)) for e in reader.read({"loud": loud[t : t + 1]}, t)]
    return events + reader.end(len(loud)), loud[:, 0]


def streamed(streamer, sound, sizes):
    events, at = [], 0
    for size in sizes:
        events += streamer.feed(sound[at : at + size])
        at += size
    assert at >= len(sound)
    return events + streamer.finish()


def test_delay_and_latency_follow_from_the_lookahead():
    assert Loudness.stream_spec.delay == 2
    assert Loudness.stream_spec.latency_s == pytest.approx(0.03)
    piano = StreamSpec(16000, 512, lookahead=1024 + 3 * 512)
    assert (piano.delay, piano.latency_s) == (4, 0.16)
    assert StreamSpec(16000, 512, lookahead=1024 + 1).latency_s == pytest.approx(0.096)
    assert StreamSpec(16000, 160, lookahead=0).delay == 0
    # Two frames a step: the first waits for the second, which needs 512 samples after sample 160.
    two = StreamSpec(16000, 320, lookahead=512, frames=2)
    assert (two.delay, two.time_s(3)) == (2, 0.03)
    for frames, delay in ((1, 2), (2, 2), (4, 3)):
        spec = StreamSpec(100, 8, lookahead=20, frames=frames)
        last = 8 - 8 // frames  # of a step that begins at sample 0, where its last frame stands
        assert spec.delay == delay == math.ceil((last + 20) / 8) - 1


@pytest.mark.parametrize("sizes", [(0, 8, 0), (16000, 0, 0), (16000, 512, -1)])
def test_a_spec_that_cannot_work_is_refused(sizes):
    with pytest.raises(ConfigError, match="positive"):
        StreamSpec(*sizes)
    with pytest.raises(ConfigError, match="does not hold 3 frames"):
        StreamSpec(16000, 512, 0, frames=3)


@pytest.mark.parametrize("size", [1, 3, 10, 17, 128, 5000])
def test_blocks_of_any_size_give_what_the_whole_gives(model, stream, sound, size):
    expected, loud = whole(model, sound)
    got = streamed(stream, sound, [size] * -(-len(sound) // size))
    assert got == expected
    assert len(got) > 10
    np.testing.assert_allclose(stream._reader.frames, loud, atol=1e-5)
    assert stream.programs == 1


def test_random_blocks_and_empty_ones(model, stream, sound):
    rng = np.random.default_rng(1)
    assert streamed(stream, sound, rng.integers(0, 90, 100)) == whole(model, sound)[0]
    assert stream.programs == 1


def test_int16_is_heard_as_its_floats(model, stream):
    sound = np.repeat([0, 20000, 0], 40).astype(np.int16)
    expected, _ = whole(model, sound / np.float32(32768))
    assert stream.feed(sound) + stream.finish() == expected
    assert len(expected) == 2


def test_events_come_as_soon_as_the_lookahead_allows(stream):
    """A frame is told with the sample that completes it, and not one sample before."""
    assert stream.feed(np.ones(2 * HOP, np.float32)) == []
    assert stream.feed(np.ones(HOP - 1, np.float32)) == []
    assert stream.heard_s == 0
    assert stream.feed(np.ones(1, np.float32)) == [NoteOn(0.0, 60, 80)]
    assert (stream.time_s, stream.heard_s) == (0.03, 0.01)


def test_finish_closes_what_sounds_and_says_no_more(stream):
    stream.feed(np.ones(4 * HOP - 3, np.float32))
    assert stream.finish() == [NoteOff(0.04, 60)]
    assert stream.time_s == 0.04  # the hop that was filled up
    assert stream.finish() == []
    with pytest.raises(AudioError, match="has ended"):
        stream.feed(np.ones(4, np.float32))
    stream.reset()
    assert stream.finish() == []
    assert stream.time_s == 0


def test_a_gap_closes_what_sounds_and_time_goes_on(stream):
    events = stream.feed(np.ones(5 * HOP, np.float32))
    events += stream.skip(250)
    assert events == [NoteOn(0.0, 60, 80), NoteOff(0.05, 60)]
    assert (stream.time_s, stream.skipped_s) == (0.3, 0.25)
    assert stream.feed(np.ones(3 * HOP, np.float32)) == [NoteOn(0.3, 60, 80)]
    (off,) = stream.finish()
    assert off.time_s == pytest.approx(0.33)
    assert stream.programs == 1
    with pytest.raises(AudioError, match="-1 samples"):
        stream.skip(-1)


def test_what_is_not_sound_is_refused_and_nothing_of_it_heard(stream):
    good = np.ones(HOP, np.float32)
    stream.feed(good)
    for value in (np.nan, np.inf, -np.inf):
        bad = np.full(7 * HOP, 0.5, np.float32)
        bad[33] = value
        with pytest.raises(AudioError, match=r"1 of 70 samples after 0\.010 s are not numbers"):
            stream.feed(bad)
    assert stream.time_s == 0.01
    with pytest.raises(AudioError, match=r"shape \(2, 10\)"):
        stream.feed(np.ones((2, 10), np.float32))
    with pytest.raises(AudioError, match="dtype int64"):
        stream.feed(np.ones(10, np.int64))


def test_nan_can_be_heard_as_silence_and_is_counted(model, sound):
    streamer = Streamer(model, bad_samples="silence")
    broken, mended = sound.copy(), sound.copy()
    broken[100:300:7] = np.nan
    mended[100:300:7] = 0
    assert streamer.feed(broken) + streamer.finish() == whole(model, mended)[0]
    assert streamer.bad_samples == len(range(100, 300, 7))


def test_options_reach_the_reader_and_a_deaf_model_is_named(model):
    assert Streamer(model, threshold=1e9).feed(np.ones(100, np.float32)) == []
    assert can_stream(model) and can_stream(Loudness)
    assert not can_stream(nnx.Linear)
    with pytest.raises(ConfigError, match="Linear hears whole recordings"):
        Streamer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_nothing_grows(model, stream):
    block = np.ones(1000, np.float32)
    stream.feed(block)

    def held():
        return sum(leaf.nbytes for leaf in jax.tree.leaves(stream.state)), len(jax.live_arrays())

    before = held()
    for _ in range(20):
        stream.feed(block)
    assert held() == before


def test_events_make_notes():
    events = [
        NoteOff(0.1, 50),  # never began
        NoteOn(0.5, 62, 90),
        NoteOn(0.5, 60, 70),
        PitchFrame(0.6, 440.0, 0.9),
        NoteOn(1.0, 62, 40),  # again, before it ended
        NoteOff(1.5, 60),
    ]
    notes = events_to_notes(events, end_s=2.0)
    assert [tuple(n)[:4] for n in notes] == [
        (0.5, 1.5, 60, 70),
        (0.5, 1.0, 62, 90),
        (1.0, 2.0, 62, 40),
    ]
    assert events_to_notes(events).offset_s.max() == 1.5
    assert len(events_to_notes([])) == 0
