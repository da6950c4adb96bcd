"""The built-in band: what is heard is what the notes say, and it needs no file."""

import numpy as np
import pytest

from musicjax.data.band import PROGRAMS, beat, play_band, render_band
from musicjax.data.pipeline import DataConfig, examples, train_iterator
from musicjax.notes import Notes

RATE = 16_000


def alone(program, pitch=60, is_drum=False):
    notes = Notes.from_arrays([0.2], [0.7], [pitch], [100], [program], [is_drum])
    return render_band(notes, RATE, np.random.default_rng(0))


@pytest.mark.parametrize("program", [*PROGRAMS, 104])
def test_an_instrument_sounds_at_its_pitch_while_it_is_held(program):
    sound = alone(program, 57)
    assert not sound[: int(0.2 * RATE)].any()
    during, after = sound[int(0.25 * RATE) : int(0.65 * RATE)], sound[int(1.4 * RATE) :]
    assert np.abs(during).max() > 100 * np.abs(after).max(initial=0.0)
    power = np.abs(np.fft.rfft(during * np.hanning(len(during)))) ** 2
    place = np.fft.rfftfreq(len(during), 1 / RATE) / 220.0  # in harmonics of the A
    harmonic = (np.abs(place - np.round(place)) < 0.1) & (place > 0.5)
    assert power[harmonic].sum() > 0.8 * power.sum()


def test_drums_differ():
    kick, snare, hat, cymbal, tom, other = (alone(0, key, True) for key in (36, 38, 42, 49, 45, 75))

    def brightness(sound):
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((power * np.arange(len(power))).sum() / power.sum()) / len(power)

    assert brightness(kick) < brightness(tom) < brightness(snare) < brightness(hat)
    assert np.count_nonzero(np.abs(cymbal) > 1e-4) > 3 * np.count_nonzero(np.abs(hat) > 1e-4)
    assert np.abs(other).max() > 0.01


def test_pieces_have_several_instruments_and_sometimes_drums():
    pieces = [play_band(np.random.default_rng(seed), 4.0, RATE)[1] for seed in range(6)]
    assert max(len(np.unique(p.program[~p.is_drum])) for p in pieces) >= 3
    assert {bool(p.is_drum.any()) for p in pieces} == {True, False}
    assert all(set(p.program[~p.is_drum].tolist()) <= set(PROGRAMS) for p in pieces)
    drums = beat(np.random.default_rng(0), 8.0)
    assert drums.is_drum.all() and drums.onset_s.max() > 7


def test_the_pipeline_plays_the_band_and_follows_the_seed():
    def labels(notes, start_s, num_samples):
        return {"programs": np.bincount(notes.program, minlength=128)}

    config = DataConfig(train=("composer:band",), clip_s=2.0, batch_size=4, threads=1, augment=None)
    first, second = (train_iterator(config, labels, RATE) for _ in range(2))
    batch = next(first)
    np.testing.assert_array_equal(batch["audio"], next(second)["audio"])
    assert np.count_nonzero(batch["programs"].sum(axis=0)) > 2
    first.close()
    second.close()
    piece = next(iter(examples(["composer:band"], RATE)))
    assert len(piece.samples) == 12 * RATE and len(piece.notes)
