"""Long recordings: each frame once, one compiled program, the numbers of one forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicjax.infer import Layout, Runner, layout, stitch, windows

SMALL = Layout(hop=4, window_frames=10, context_frames=3, batch_size=2)


def in_blocks(samples, size):
    return (samples[i : i + size] for i in range(0, len(samples), size))


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 39, 40, 41, 55, 56, 57, 72, 73, 200, 201, 203])
def test_every_frame_is_kept_once_and_hears_its_context(length, block):
    samples = np.arange(1, length + 1, dtype=np.float32)
    frames = -(-length // SMALL.hop)
    kept = []
    cut = list(windows(in_blocks(samples, block), SMALL))
    for window in cut:
        start = window.first_frame * SMALL.hop
        sound = samples[start : start + SMALL.window_samples]
        np.testing.assert_array_equal(window.samples[: len(sound)], sound)
        assert not window.samples[len(sound) :].any()
        assert window.frames == -(-len(sound) // SMALL.hop)
        kept += range(window.first_frame + window.keep.start, window.first_frame + window.keep.stop)
        at_start, at_end = window.first_frame == 0, window.first_frame + window.frames == frames
        assert at_start or window.keep.start >= SMALL.context_frames
        assert at_end or window.keep.stop <= SMALL.window_frames - SMALL.context_frames
    assert kept == list(range(frames))
    assert [w.is_last for w in cut] == [False] * (len(cut) - 1) + [True]


def test_nothing_gives_no_windows():
    assert list(windows([], SMALL)) == []
    assert list(windows([np.zeros(0, np.float32)], SMALL)) == []


def test_a_window_of_context_alone_is_refused():
    with pytest.raises(ValueError, match="make the window longer"):
        Layout(hop=4, window_frames=6, context_frames=3, batch_size=1)


def test_lengths_in_seconds_become_whole_frames():
    plan = layout(16000, 512, context_s=2.0, window_s=14.0, batch_size=3)
    assert (plan.window_frames, plan.context_frames) == (438, 63)
    assert plan.stride == 312


@pytest.fixture(scope="module")
def runner(tiny_model):
    model, config = tiny_model
    rate, hop = config.frontend.sample_rate, config.frontend.hop_length
    return Runner(model, layout(rate, hop, context_s=1.0, window_s=4.0, batch_size=2))


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def hear(runner, *recordings):
    found = {i: [] for i in range(len(recordings))}
    jobs = (
        (i, w) for i, r in enumerate(recordings) for w in windows(in_blocks(r, 9000), runner.layout)
    )
    for index, _, piece in runner.run(jobs):
        found[index].append(piece)
    return [stitch(pieces) for pieces in found.values()]


def test_windows_give_what_one_long_forward_pass_gives(runner, tiny_model):
    samples = noise(15.3)
    (heard,) = hear(runner, samples)
    whole = np.pad(samples, (0, -len(samples) % runner.layout.hop))
    expected = jax.jit(tiny_model[0].activations)(jnp.asarray(whole)[None])
    for name, value in expected.items():
        assert heard[name].shape == value.shape[1:]
        assert heard[name].dtype == np.float16
        np.testing.assert_allclose(heard[name], value[0], atol=2e-3, err_msg=name)


def test_recordings_that_share_batches_do_not_hear_each_other(runner):
    recordings = [noise(s, seed) for seed, s in enumerate((0.5, 5.0, 9.0, 0.01))]
    together = hear(runner, *recordings)
    for recording, heard in zip(recordings, together, strict=True):
        (alone,) = hear(runner, recording)
        for name, value in alone.items():
            np.testing.assert_array_equal(heard[name], value)


def test_a_short_recording_is_not_changed_by_the_zeros_after_it(runner, tiny_model):
    samples = noise(1.024)
    (heard,) = hear(runner, samples)
    expected = jax.jit(tiny_model[0].activations)(jnp.asarray(samples)[None])
    for name, value in expected.items():
        # The spectrogram of the last two frames does see what follows: zeros or a reflection.
        np.testing.assert_allclose(heard[name][:-8], value[0, :-8], atol=2e-2, err_msg=name)


def test_one_compiled_program_serves_all_lengths(runner):
    for seconds in (0.01, 3.0, 4.0, 11.0):
        hear(runner, noise(seconds))
    assert runner.programs == 1


def test_other_weights_of_the_same_model_need_no_compiling(runner, tiny_model):
    from flax import nnx

    (before,) = hear(runner, noise(2.0))
    model, _ = tiny_model
    graph, state = nnx.split(model)
    changed = nnx.merge(graph, nnx.map_state(lambda _, v: v.replace(v.get_value() * 0.9), state))
    runner.take_weights(changed)
    (after,) = hear(runner, noise(2.0))
    runner.take_weights(model)
    assert runner.programs == 1
    assert not np.array_equal(before["frame"], after["frame"])
