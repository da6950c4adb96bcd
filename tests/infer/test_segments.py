"""Recordings cut into overlapping segments with silence before and after."""

import numpy as np
import pytest

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
