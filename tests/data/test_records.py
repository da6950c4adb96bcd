"""Records: what is written is read, damage is a sentence, crops decode only themselves."""

import pickle
from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from musicjax.data.records import (
    Example,
    Record,
    RecordSource,
    decode,
    encode,
    to_float,
    to_int16,
    write_shard,
)
from musicjax.errors import DataError
from musicjax.notes import Notes, Pedal

times = st.floats(0, 1e4, allow_nan=False, width=64)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    count = draw(st.integers(0, 12))
    onset = np.array(draw(st.lists(times, min_size=count, max_size=count)), float)
    midi = st.integers(0, 127)
    columns = [draw(st.lists(midi, min_size=count, max_size=count)) for _ in range(3)]
    drums = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    moves = draw(st.lists(st.tuples(times, midi), max_size=5))
    pedal = Pedal.from_arrays(*map(np.array, zip(*moves, strict=True))) if moves else None
    lengths = np.array(draw(st.lists(times, min_size=count, max_size=count)), float)
    notes = Notes.from_arrays(
        onset, onset + lengths, *(np.array(c, int) for c in columns), np.array(drums, bool), pedal
    )
    samples = draw(hnp.arrays(np.int16, st.integers(1, 300)))
    return Example(draw(st.text(max_size=20)), draw(st.integers(8000, 48000)), samples, notes)


@settings(max_examples=30, deadline=None)
@given(examples(), st.sampled_from(["pcm16", "flac"]))
def test_a_record_gives_back_what_it_was_given(example: Example, codec: str) -> None:
    back = decode(encode(example, codec))
    assert (back.id, back.sample_rate) == (example.id, example.sample_rate)
    np.testing.assert_array_equal(back.samples, example.samples)
    assert back.notes == example.notes


@pytest.mark.parametrize("codec", ["pcm16", "flac"])
def test_a_crop_is_a_part_of_the_audio(codec: str, example_of: Callable[..., Example]) -> None:
    example = example_of(3)
    record = Record(encode(example, codec))
    for start, count in [(0, 10), (777, 1000), (23_990, 100), (24_000, 5)]:
        expected = example.samples[start : start + count]
        np.testing.assert_array_equal(record.crop(start, count), expected)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damaged_records_raise_data_errors(data: st.DataObject) -> None:
    samples = np.arange(50, dtype=np.int16)
    whole = encode(Example("x", 8000, samples, Notes.from_arrays([0.1], [0.2], [60])))
    kind = data.draw(st.sampled_from(["cut", "magic", "header"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "magic":
        damaged = b"RIFF" + whole[4:]
    else:
        at = data.draw(st.integers(8, 60))
        damaged = whole[:at] + b"\xff" + whole[at + 1 :]
    with pytest.raises(DataError):
        decode(damaged)


def test_a_source_reads_all_shards_in_order_and_at_random(
    records: Path, example_of: Callable[..., Example]
) -> None:
    source = RecordSource(records)
    assert len(source) == 7
    assert [e.id for e in source.examples()] == [f"piece-{i}" for i in range(7)]
    assert source[-1].id == "piece-6" and [r.id for r in source[2:4]] == ["piece-2", "piece-3"]
    for i in (5, 0, 6, 3):
        example = source[i].example()
        assert example.notes == example_of(i).notes
        np.testing.assert_array_equal(example.samples, example_of(i).samples)
    with pytest.raises(IndexError):
        source[7]


def test_a_source_travels_to_another_process(records: Path) -> None:
    source = RecordSource(records)
    assert source[0].id == "piece-0"
    assert pickle.loads(pickle.dumps(source))[4].id == "piece-4"


def test_a_shard_that_fails_half_way_leaves_nothing(
    tmp_path: Path, example_of: Callable[..., Example]
) -> None:
    def failing():
        yield example_of(0)
        raise RuntimeError("the disk burns")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.array_record", failing())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shard_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        RecordSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match="musicjax data render"):
        RecordSource(tmp_path)
    (tmp_path / "x.array_record").write_bytes(b"not a shard" * 100)
    with pytest.raises(DataError, match="not a complete ArrayRecord"):
        RecordSource(tmp_path)


def test_a_shard_cut_short_is_named(tmp_path: Path, example_of: Callable[..., Example]) -> None:
    path = tmp_path / "x.array_record"
    write_shard(path, [example_of(0), example_of(1)])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"x\.array_record is not a complete"):
        RecordSource(path)


def test_stereo_or_float_audio_is_refused(example_of: Callable[..., Example]) -> None:
    notes = example_of(0).notes
    broken = object.__new__(Example)
    for name, value in (("id", "x"), ("sample_rate", 8000), ("notes", notes)):
        object.__setattr__(broken, name, value)
    object.__setattr__(broken, "samples", np.zeros((2, 10), np.int16))
    with pytest.raises(DataError, match="int16 of shape"):
        encode(broken)


def test_sixteen_bits_and_back() -> None:
    samples = np.array([-1.5, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0], np.float32)
    back = to_float(to_int16(samples))
    np.testing.assert_allclose(back, np.clip(samples, -1, 1), atol=2e-4)
