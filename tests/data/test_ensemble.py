"""Pieces for other instruments: nothing lost, everything in range, drums added."""

import numpy as np
import pytest

from musicjax.data.ensemble import EnsembleConfig, instrument_range, orchestrate, split_parts
from musicjax.data.render import RenderConfig, Repertoire
from musicjax.errors import ConfigError, DataError
from musicjax.notes import Notes, Pedal

BEAT = Notes.from_arrays(
    [0.0, 0.5, 1.0], [0.1, 0.6, 1.1], [36, 38, 36], [100, 90, 80], is_drum=[True] * 3
)


def song(seed=0, bars=8):
    """Chords of four with a melody above, one program."""
    rng = np.random.default_rng(seed)
    onset, pitch = [], []
    for bar in range(bars):
        root = int(rng.integers(40, 52))
        for beat, tones in enumerate(((0, 4, 7), (12,), (4, 7), (24,))):
            onset += [bar + beat / 4] * len(tones)
            pitch += [root + tone for tone in tones]
    return Notes.from_arrays(onset, np.array(onset) + 0.2, pitch, [80] * len(onset))


def test_every_note_is_played_by_some_instrument_in_its_range():
    notes = song()
    seen = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        config = EnsembleConfig(parts=(1, 6), doubling_chance=0.0, drums_chance=0.0)
        played = orchestrate(notes, rng, config)
        assert 0.9 * len(notes) <= len(played) <= len(notes)  # folding may make two notes one
        programs = np.unique(played.program)
        assert 1 <= len(programs) <= 6
        seen |= set(programs.tolist())
        for program in programs.tolist():
            low, high = instrument_range(program)
            pitch = played.pitch[played.program == program]
            assert low <= pitch.min() and pitch.max() <= high
        near = np.abs(notes.onset_s[:, None] - played.onset_s[None]).min(axis=1)
        assert near.max() < 1e-9
    assert len(seen) > 12
    again = orchestrate(notes, np.random.default_rng(9), config)
    assert again == played


def test_parts_are_split_to_the_number_asked_for():
    notes = song()
    for count in (1, 2, 3, 5, 8):
        parts = split_parts(notes, count, np.random.default_rng(count))
        assert sum(map(len, parts)) == len(notes)
        assert len(parts) == count
    alone = Notes.from_arrays([0.0], [1.0], [60])
    assert len(split_parts(alone, 4, np.random.default_rng(0))) == 1
    several = Notes.concat([song(s) for s in range(3)])
    several = Notes.from_arrays(
        several.onset_s,
        several.offset_s,
        several.pitch,
        several.velocity,
        program=np.repeat([0, 40, 42], len(song())),
    )
    parts = split_parts(several, 3, np.random.default_rng(0))
    assert [np.unique(p.program).tolist() for p in parts] == [[0], [40], [42]]
    assert len(split_parts(several, 2, np.random.default_rng(0))) == 2


def test_drums_go_on_as_long_as_the_piece_and_keep_their_keys():
    notes = song()
    config = EnsembleConfig(drums_chance=1.0)
    played = orchestrate(notes, np.random.default_rng(1), config, drums=BEAT)
    beat = played[played.is_drum]
    assert set(beat.pitch.tolist()) == {36, 38}
    assert beat.onset_s.min() < 1.2 and beat.onset_s.max() > notes.duration_s - 1.7
    own = Notes.concat([notes, BEAT])
    other = Notes.from_arrays([0.0], [0.1], [42], is_drum=[True])
    played = orchestrate(own, np.random.default_rng(1), config, drums=other)
    assert played.pitch[played.is_drum].tolist() == [36, 38, 36]


def test_the_pedal_becomes_length():
    pedal = Pedal.from_arrays([0.0, 1.0], [127, 0])
    notes = Notes.from_arrays([0.1], [0.3], [60], pedal=pedal)
    played = orchestrate(notes, np.random.default_rng(0), EnsembleConfig(doubling_chance=0))
    assert played.pedal is None
    assert played.offset_s.tolist() == [1.0]


def test_only_programs_that_can_be_played_are_drawn():
    config = EnsembleConfig(parts=(4, 8))
    played = orchestrate(song(), np.random.default_rng(0), config, programs=(40, 42, 73, 120))
    assert set(np.unique(played.program).tolist()) <= {40, 42, 73}
    with pytest.raises(DataError, match="no pitched instrument"):
        orchestrate(song(), np.random.default_rng(0), config, programs=(120,))


def test_options_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="parts is"):
        EnsembleConfig(parts=(0, 3))
    with pytest.raises(ConfigError, match="drums join ensembles only"):
        RenderConfig(out=tmp_path, drums=("groove.tar.gz",))
    with pytest.raises(ConfigError, match="ensembles are played by sound fonts and modelled:"):
        Repertoire.find(RenderConfig(out=tmp_path, ensemble=True))


def test_corpora_of_piano_are_the_same_as_before_there_were_ensembles(tmp_path):
    plain = Repertoire.find(RenderConfig(out=tmp_path))
    assert plain.digest() == "98e9d9d85d65ce59"
    other = Repertoire.find(RenderConfig(out=tmp_path, band=EnsembleConfig(parts=(2, 3))))
    assert other.digest() == plain.digest()
