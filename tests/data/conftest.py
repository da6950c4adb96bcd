"""Small examples whose audio says which part of them a crop is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musicjax.data.records import Example, write_shard
from musicjax.notes import Notes, Pedal

RATE = 8000


def make_example(number: int, seconds: float = 3.0, pedal: bool = False) -> Example:
    """Clicks of amplitude 10000 + number at each onset, on a ramp that rises with time."""
    rng = np.random.default_rng(number)
    onset_s = np.sort(rng.choice(np.arange(1, int(seconds * 10)), 8, replace=False)) / 10
    samples = (np.arange(round(seconds * RATE)) // 10).astype(np.int16)
    samples[np.round(onset_s * RATE).astype(int)] = 10000 + number
    notes = Notes.from_arrays(
        onset_s,
        onset_s + 0.15,
        rng.integers(21, 109, 8),
        rng.integers(1, 128, 8),
        pedal=Pedal.from_arrays([0.5, 1.0], [127, 0]) if pedal else None,
    )
    return Example(f"piece-{number}", RATE, samples, notes)


@pytest.fixture(scope="session")
def example_of() -> Callable[..., Example]:
    """`example_of(number)`: a small example."""
    return make_example


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards with seven examples."""
    folder = tmp_path_factory.mktemp("records")
    write_shard(folder / "a.array_record", [make_example(i) for i in range(4)])
    write_shard(folder / "b.array_record", [make_example(i) for i in range(4, 7)], codec="flac")
    return folder
