"""Recordings cut into overlapping segments with silence before and after."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx

from musicjax.audio import Audio
from musicjax.infer import SegmentRunner, hear
from musicjax.infer.segments import Segmentation, segments

PLAN = Segmentation(samples=16, step=9, lead=7, batch_size=2)


def blocks_of(recording, size):
    return [recording[start : start + size] for start in range(0, len(recording), size)]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 16, 17, 40, 100])
@pytest.mark.parametrize("size", [3, 16, 1000])
def test_segments_are_those_of_the_padded_recording(length, size):
    recording = np.arange(1, length + 1, dtype=np.float32)
    padded = np.concatenate([np.zeros(7), recording, np.zeros(7 + 16)])
    found = list(segments(blocks_of(recording, size), PLAN))
    starts = range(0, length + 14, 9)
    assert len(found) == len(starts)
    for window, start in zip(found, starts, strict=True):
        np.testing.assert_array_equal(window.samples, padded[start : start + 16])
        assert window.first_frame == start - 7
    assert [window.is_last for window in found] == [False] * (len(found) - 1) + [True]


def test_an_empty_recording_has_no_segments():
    assert list(segments([], PLAN)) == []


@pytest.mark.parametrize("size", [3, 1000])
def test_both_channels_are_cut_alike(size):
    recording = np.stack([np.arange(1, 41), -np.arange(1, 41)]).astype(np.float32)
    blocks = [recording[:, start : start + size] for start in range(0, 40, size)]
    found = list(segments(blocks, PLAN))
    expected = segments(blocks_of(recording[0], size), PLAN)
    for window, mono in zip(found, expected, strict=True):
        np.testing.assert_array_equal(window.samples, [mono.samples, -mono.samples])
        assert (window.first_frame, window.is_last) == (mono.first_frame, mono.is_last)


class Reader:
    """One event a segment: its loudest frame, with what `describe` says of it."""

    def intervals(self, loudest):
        return (np.asarray([int(np.argmax(loudest[0]))]),)

    def events(self, intervals, power):
        return {"frame": intervals[0], "power": power}


@partial(jax.tree_util.register_dataclass, data_fields=["power"], meta_fields=[])
@dataclass(frozen=True)
class Power:
    """Of frames (B, T)."""

    power: jax.Array

    @property
    def decisions(self):
        return (self.power,)


class Loudest(nnx.Module):
    """Hears frames of four samples, the powers of its channels averaged."""

    segment_samples, segment_hop, segment_lead, hear_stereo = 16, 8, 8, True

    def prepare(self):
        return ()

    def hear(self, audio, prepared):
        power = (audio**2 if audio.ndim == 2 else (audio**2).mean(axis=1)).reshape(-1, 4, 4)
        return Power(power.sum(axis=-1))

    def describe(self, heard, item, frame):
        return {"power": heard.power[item, frame]}

    def reader(self):
        return Reader()


def test_mono_and_stereo_share_batches():
    mono = np.zeros(24, np.float32)
    mono[[9, 20]] = 2.0, 3.0
    opposite = np.stack([mono, -mono])  # whose mean is silence
    left = np.stack([mono, 0 * mono])
    three = np.stack([mono, mono, mono])
    runner = SegmentRunner(Loudest(), batch_size=2)
    recordings = [Audio(samples, 100) for samples in (mono, opposite, left, three)]
    heard = [h.activations["power"] for h in hear(runner, recordings, 100)]
    np.testing.assert_array_equal(heard[0], [0, 4, 9, 9, 0])
    np.testing.assert_array_equal(heard[1], heard[0])
    np.testing.assert_array_equal(heard[2], heard[0] / 2)
    np.testing.assert_array_equal(heard[3], heard[0])


class Counted(Loudest):
    """Tells zeros from sound, and the host how often it was asked."""

    asked: ClassVar[list] = []

    def hear(self, audio, prepared):
        jax.debug.callback(lambda: self.asked.append(audio.shape))
        return super().hear(audio + 1.0, prepared)


def test_silence_is_heard_once():
    """Recordings with minutes of zeros in them: the same answers, without hearing them again."""
    rng = np.random.default_rng(0)
    long = np.zeros(8 * 40, np.float32)
    long[40:60], long[200:220] = rng.normal(size=(2, 20))
    recordings = [Audio(x, 100) for x in (long, long[::-1].copy(), long[:32], long[40:60])]
    runner = SegmentRunner(Counted(), batch_size=2)
    first = [h.activations for h in hear(runner, recordings, 100)]
    jax.effects_barrier()
    asked = len(Counted.asked)
    again = [h.activations for h in hear(runner, recordings, 100)]
    jax.effects_barrier()
    plain = SegmentRunner(Loudest(), batch_size=1)
    segments_in_all = sum(len(x["frame"]) for x in first)
    assert len(Counted.asked) - asked <= asked < segments_in_all / 4
    for one, two, recording in zip(first, again, recordings, strict=True):
        louder = Audio(recording.samples + 1.0, 100)
        expected = next(iter(hear(plain, [louder], 100))).activations
        for name in ("frame", "power"):
            np.testing.assert_array_equal(one[name], two[name])
            np.testing.assert_array_equal(one[name][1:-2], expected[name][1:-2])
