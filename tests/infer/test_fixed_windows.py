"""Windows of one published kind: where they stand, what they hold, which frames are kept."""

import numpy as np
import pytest

from musicjax.audio.framing import Windowing
from musicjax.infer import FixedLayout, windows

# 10 samples of which frames 1 and 2 (of 4) are kept, every 7 samples, 3 before the first.
PLAN = Windowing(samples=10, stride=7, lead=3, first=1, last=3)
LAYOUT = FixedLayout(hop=3, windowing=PLAN, batch_size=2)


@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 7, 8, 10, 13, 14, 15, 21, 50])
def test_windows_stand_where_the_network_has_them(length, block):
    samples = np.arange(1, length + 1, dtype=np.float32)
    padded = np.concatenate([np.zeros(3), samples, np.zeros(20)])
    cut = list(windows((samples[i : i + block] for i in range(0, length, block)), LAYOUT))
    assert len(cut) == -(-length // 7)
    for number, window in enumerate(cut):
        np.testing.assert_array_equal(window.samples, padded[number * 7 : number * 7 + 10])
        assert window.keep.start == 1 and window.first_frame == 2 * number - 1
    kept = sum(window.keep.stop - window.keep.start for window in cut)
    assert kept == max(length * 2 // 7, 1)
    assert [window.is_last for window in cut] == [False] * (len(cut) - 1) + [True]


def test_nothing_gives_no_windows_and_time_runs_by_the_stride():
    assert list(windows([], LAYOUT)) == []
    assert LAYOUT.window_samples == 10
    assert LAYOUT.frames_per_s(700) == 200.0
