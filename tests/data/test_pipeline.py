"""Batches: labels lie where the audio is, and the stream goes on exactly where it stopped."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from musicjax.data.augment import AugmentConfig
from musicjax.data.pipeline import DataConfig, examples, train_iterator
from musicjax.data.records import Example, write_shard
from musicjax.errors import ConfigError, DataError
from musicjax.notes import Notes

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
RATE = 8000
HOP = 80


def onsets(notes: Notes, start_s: float, num_samples: int) -> dict[str, np.ndarray]:
    """Targets at 100 frames a second: onsets and sounding notes."""
    frames = num_samples // HOP
    onset, frame = np.zeros((frames, 88), np.uint8), np.zeros((frames, 88), np.uint8)
    first = np.round((notes.onset_s - start_s) * RATE / HOP).astype(int)
    last = np.round((notes.offset_s - start_s) * RATE / HOP).astype(int)
    for begin, end, key in zip(first, last, notes.pitch - 21, strict=True):
        if 0 <= begin < frames:
            onset[begin, key] = 1
        frame[max(begin, 0) : max(end, 0), key] = 1
    return {"onset": onset, "frame": frame}


def stream(config: DataConfig, **parts: int) -> Any:
    return train_iterator(config, onsets, RATE, **parts)


def take(iterator: Any, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@pytest.fixture(scope="module")
def config(records: Path) -> DataConfig:
    return DataConfig(train=(str(records),), clip_s=1.0, batch_size=2, threads=1, seed=3)


def test_batches_have_the_promised_shapes(config: DataConfig) -> None:
    batch = next(stream(config))
    assert batch["audio"].shape == (2, RATE) and batch["audio"].dtype == np.float32
    assert batch["onset"].shape == (2, 100, 88)
    quiet = dataclasses.replace(config, audio_dtype="int16", augment=None)
    assert next(stream(quiet))["audio"].dtype == np.int16


def test_the_stream_resumes_exactly(config: DataConfig) -> None:
    whole = stream(config)
    take(whole, 3)
    state = whole.get_state()
    rest = take(whole, 4)
    resumed = stream(config)
    resumed.set_state(state)
    assert_same(rest, take(resumed, 4))


def test_worker_processes_give_and_resume_the_same_stream(config: DataConfig) -> None:
    expected = take(stream(config), 5)
    forked_out = dataclasses.replace(config, workers=1)
    iterator = stream(forked_out)
    assert_same(expected[:2], take(iterator, 2))
    state = iterator.get_state()
    iterator.close()
    resumed = stream(forked_out)
    resumed.set_state(state)
    assert_same(expected[2:4], take(resumed, 2))
    resumed.close()


def test_seeds_and_epochs_differ(config: DataConfig) -> None:
    one, other = next(stream(config)), next(stream(dataclasses.replace(config, seed=4)))
    assert not np.array_equal(one["audio"], other["audio"])
    epochs = take(stream(config), 7)  # two epochs of seven examples
    audio = np.concatenate([b["audio"] for b in epochs])
    assert len(np.unique(audio, axis=0)) == 14, "an epoch repeated the crops of another"


def test_processes_share_the_clips_of_one(config: DataConfig) -> None:
    whole = take(stream(config), 2)
    parts = [take(stream(config, process_index=i, process_count=2), 2) for i in range(2)]
    for step, batch in enumerate(whole):
        shared = np.stack([parts[i][step]["audio"][0] for i in range(2)])
        np.testing.assert_array_equal(shared, batch["audio"])
    with pytest.raises(ConfigError, match="share equally"):
        stream(config, process_index=0, process_count=3)


@pytest.mark.parametrize("strength", [None, 0.0])
def test_labels_lie_where_the_clicks_are(config: DataConfig, strength: float | None) -> None:
    augment = None if strength is None else AugmentConfig(strength=strength)
    for batch in take(stream(dataclasses.replace(config, augment=augment)), 8):
        for audio, onset in zip(batch["audio"], batch["onset"], strict=True):
            clicks = np.flatnonzero(audio > 9000 / 32768)
            labels = np.flatnonzero(onset.any(axis=1)) * HOP
            inside = clicks[(clicks >= HOP) & (clicks < RATE - HOP)]
            for click in inside:
                assert np.abs(labels - click).min() <= HOP // 2


def test_retuning_moves_labels_with_the_audio(config: DataConfig) -> None:
    tuned = AugmentConfig(
        tuning_cents=60.0,
        **dict.fromkeys(("room_chance", "eq_chance", "noise_chance"), 0.0),
        **dict.fromkeys(("band_limit_chance", "drive_chance", "compress_chance"), 0.0),
    )
    for batch in take(stream(dataclasses.replace(config, augment=tuned)), 6):
        for audio, onset in zip(batch["audio"], batch["onset"], strict=True):
            clicks = np.flatnonzero(audio > 0.9 * audio.max())
            labels = np.flatnonzero(onset.any(axis=1)) * HOP
            if np.sum(np.diff(clicks, prepend=-99) > 5) < 2:
                continue  # an empty crop: its loudest samples are the ramp
            for click in clicks[(clicks >= HOP) & (clicks < RATE - HOP)]:
                assert np.abs(labels - click).min() <= HOP


def test_the_pedal_lengthens_notes_when_asked(
    tmp_path: Path, example_of: Callable[..., Example]
) -> None:
    write_shard(tmp_path / "a.array_record", [example_of(1, 1.2, pedal=True)])
    common = {"train": (str(tmp_path),), "clip_s": 1.2, "batch_size": 1, "augment": None}
    held, released = (
        next(stream(DataConfig(**common, pedal_extended=extended))) for extended in (True, False)
    )
    assert held["frame"].sum() > released["frame"].sum()
    np.testing.assert_array_equal(held["onset"], released["onset"])


def test_a_note_held_into_a_crop_sounds_without_an_onset(tmp_path: Path) -> None:
    notes = Notes.from_arrays([0.05], [2.9], [60])
    example = Example("held", RATE, np.ones(3 * RATE, np.int16), notes)
    write_shard(tmp_path / "a.array_record", [example])
    config = DataConfig(train=(str(tmp_path),), clip_s=0.5, batch_size=1, augment=None, seed=1)
    batches = take(stream(config), 12)
    assert any(b["frame"][0, :10, 39].all() and not b["onset"].any() for b in batches)


def test_a_short_example_is_padded(tmp_path: Path, example_of: Callable[..., Example]) -> None:
    write_shard(tmp_path / "a.array_record", [example_of(0, 1.0)])
    config = DataConfig(train=(str(tmp_path),), clip_s=2.0, batch_size=1, augment=None)
    batch = next(stream(config))
    assert batch["audio"].shape == (1, 2 * RATE) and not batch["audio"][0, RATE:].any()


def test_entries_are_mixed_by_weight(
    tmp_path: Path, records: Path, example_of: Callable[..., Example]
) -> None:
    silent = Example("silent", RATE, np.zeros(RATE, np.int16), example_of(0).notes)
    write_shard(tmp_path / "a.array_record", [silent])
    config = DataConfig(
        train=(str(records), str(tmp_path)),
        weights=(1.0, 3.0),
        clip_s=1.0,
        batch_size=8,
        augment=None,
    )
    audio = np.concatenate([b["audio"] for b in take(stream(config), 3)])
    assert np.sum(~audio.any(axis=1)) == 18
    # 7 records and 1: an infinite temperature makes no difference between them, MT3's a small one.
    for temperature, silent_clips in ((1e6, 12), (10 / 3, 8)):
        config = dataclasses.replace(config, weights=(), temperature=temperature)
        audio = np.concatenate([b["audio"] for b in take(stream(config), 3)])
        assert np.sum(~audio.any(axis=1)) == silent_clips


def test_the_composer_needs_no_files_and_follows_the_seed() -> None:
    config = DataConfig(clip_s=0.5, batch_size=2, threads=1)
    make = functools.partial(train_iterator, config, onsets, 16000)
    one, again = next(make()), next(make())
    assert_same([one], [again])
    assert one["audio"].shape == (2, 8000) and one["audio"].any()


def test_examples_come_whole_and_in_order(records: Path) -> None:
    assert [e.id for e in examples((str(records),))] == [f"piece-{i}" for i in range(7)]


def test_wrong_settings_are_refused(records: Path) -> None:
    with pytest.raises(ConfigError, match="one weight per entry"):
        DataConfig(weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="is empty"):
        DataConfig(train=())
    with pytest.raises(ConfigError, match="must be positive"):
        DataConfig(clip_s=0.0)
    config = DataConfig(train=(str(records),), batch_size=1)
    with pytest.raises(DataError, match="stored at 8000 Hz and the model hears 16000 Hz"):
        next(train_iterator(config, onsets, 16000))
    with pytest.raises(DataError, match="does not exist"):
        stream(DataConfig(train=("nowhere",)))
