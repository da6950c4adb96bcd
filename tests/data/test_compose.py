"""The composer: the same seed writes the same music, and all of it can be played."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from musicjax.data.compose import STYLES, compose
from musicjax.data.performance import ReperformConfig, playable, random_pedal, reperform
from musicjax.errors import ConfigError
from musicjax.notes import Notes, Pedal


@pytest.mark.parametrize("style", [None, *STYLES])
def test_a_piece_follows_from_its_seed(style: str | None) -> None:
    one, again, other = (compose(np.random.default_rng(s), 9.0, style) for s in (5, 5, 6))
    assert one == again and one != other


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_every_style_keeps_to_the_piano_and_the_clock(style: str, seconds: float) -> None:
    for seed in range(4):
        notes = compose(np.random.default_rng(seed), seconds, style)
        assert len(notes) >= 1
        assert notes.onset_s.min() >= 0 and notes.onset_s.max() < seconds
        assert notes.pitch.min() >= 21 and notes.pitch.max() <= 108
        assert notes.velocity.min() >= 1
        _assert_playable(notes)


def _assert_playable(notes: Notes) -> None:
    assert (notes.offset_s > notes.onset_s).all()
    for pitch in np.unique(notes.pitch):
        mine = notes[notes.pitch == pitch]
        assert (np.diff(mine.onset_s) >= 0.03 - 1e-9).all(), "struck twice within 30 ms"
        assert (mine.offset_s[:-1] < mine.onset_s[1:]).all(), "struck while it was down"


def test_the_music_is_varied() -> None:
    pieces = [compose(np.random.default_rng(i), 10.0) for i in range(80)]
    pitch = np.concatenate([p.pitch for p in pieces])
    velocity = np.concatenate([p.velocity for p in pieces]).astype(int)
    density = np.array([len(p) / 10 for p in pieces])
    pedalled = np.mean([p.pedal is not None for p in pieces])
    assert len(np.unique(pitch)) == 88, "a key was never played"
    assert np.quantile(velocity, 0.05) < 40 and np.quantile(velocity, 0.95) > 95
    assert np.quantile(density, 0.1) < 3 and np.quantile(density, 0.9) > 14
    assert 0.5 < pedalled < 0.9
    chords = [len(np.unique(np.round(p.onset_s, 1))) / len(p) for p in pieces]
    assert min(chords) < 0.3 and max(chords) > 0.9


def test_unknown_styles_and_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        compose(np.random.default_rng(0), 3.0, "polka")
    with pytest.raises(ConfigError, match="longer than 0"):
        compose(np.random.default_rng(0), 0.0)


strokes = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0, 3), st.integers(60, 63), st.floats(-50, 300)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(strokes)
def test_any_strokes_become_playable(rows: list[tuple[float, float, int, float]]) -> None:
    onset, length, pitch, velocity = map(np.array, zip(*rows, strict=True))
    notes = playable(onset, onset + length, pitch, velocity)
    _assert_playable(notes)
    assert set(notes.pitch.tolist()) == set(pitch.tolist())


STRICT = ReperformConfig(0, (1, 1), (1, 1), (1, 1), 0, (1, 1), 0, 0, 0, 0)


def _score() -> Notes:
    pedal = Pedal.from_arrays([0.0, 1.0], [127, 0])
    return Notes.from_arrays(
        [0.1, 0.6, 1.2], [0.5, 1.1, 2.0], [24, 60, 105], [40, 64, 90], pedal=pedal
    )


def test_a_performance_follows_from_its_seed_and_differs_from_the_score() -> None:
    config = ReperformConfig()
    one, again = (reperform(_score(), np.random.default_rng(3), config) for _ in range(2))
    assert one == again
    other = reperform(_score(), np.random.default_rng(4), config)
    assert one != other


def test_a_performance_with_no_freedom_is_the_score() -> None:
    played = reperform(_score(), np.random.default_rng(0), STRICT)
    np.testing.assert_allclose(played.onset_s, _score().onset_s)
    np.testing.assert_allclose(played.offset_s, _score().offset_s)
    np.testing.assert_array_equal(played.velocity, _score().velocity)
    assert played.pedal == _score().pedal


def test_stray_pedal_moves_count_as_none() -> None:
    notes = Notes.from_arrays(np.arange(0.0, 60, 0.5), np.arange(0.4, 60, 0.5), [60] * 120)
    stray = dataclasses.replace(notes, pedal=Pedal.from_arrays([0.1, 59.0], [127, 0]))
    config = dataclasses.replace(STRICT, pedal_chance=0.0)
    assert reperform(stray, np.random.default_rng(0), config).pedal is None
    config = dataclasses.replace(STRICT, pedal_chance=1.0)
    assert len(reperform(stray, np.random.default_rng(0), config).pedal) > 4


def test_transposition_drops_what_leaves_the_keyboard() -> None:
    config = ReperformConfig(transpose_semitones=12)
    for seed in range(20):
        played = reperform(_score(), np.random.default_rng(seed), config)
        assert len(played) and played.pitch.min() >= 21 and played.pitch.max() <= 108


def test_pedals_are_moves_in_time() -> None:
    for seed in range(40):
        pedal = random_pedal(np.random.default_rng(seed), np.arange(0.0, 20.0, 0.5))
        assert pedal is None or (np.diff(pedal.time_s) >= 0).all()
    assert random_pedal(np.random.default_rng(0), [1.0]) is None
