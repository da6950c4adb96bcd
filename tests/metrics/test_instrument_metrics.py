"""Scores of several instruments: cases by hand, and what MT3's own evaluation said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import DataError
from musicjax.metrics import (
    InstrumentScores,
    count_program_switches,
    family_scores,
    instrument_scores,
    mean_scores,
    note_scores,
    onset_offset_by_instrument,
    tolerance_sweep,
)
from musicjax.notes import Notes

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mt3_codec"

# A piano and a cello in octaves, and two strokes of a drum.
BAND = Notes.from_arrays(
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
    [1.0, 2.0, 1.0, 2.0, 0.1, 1.1],
    [60, 62, 48, 50, 36, 38],
    program=[0, 0, 42, 42, 0, 0],
    is_drum=[False, False, False, False, True, True],
)


def changed(**columns) -> Notes:
    """The band with some columns exchanged."""
    return replace(BAND, **{name: np.array(column) for name, column in columns.items()})


def test_a_perfect_estimate() -> None:
    scores = instrument_scores(BAND, BAND).as_dict()
    assert scores.pop("program_switches") == 0.0
    assert set(scores.values()) == {1.0}


def test_programs_are_compared_as_granularity_has_it() -> None:
    """One cello note is heard as a violin and the other as a trumpet."""
    heard = changed(program=[0, 0, 40, 56, 0, 0])
    full = instrument_scores(BAND, heard)
    assert (full.onset_program_precision, full.onset_program_recall) == (4 / 6, 4 / 6)
    assert full.onset_offset_program_f1 == pytest.approx(4 / 6)
    assert full.pitched_onset_offset_program_f1 == 0.5
    assert full.drum_onset_f1 == full.frame_f1 == note_scores(BAND, heard).onset_f1 == 1.0
    classes = instrument_scores(BAND, heard, granularity="midi_class")
    assert classes.pitched_onset_offset_program_f1 == 0.75
    flat = instrument_scores(BAND, heard, granularity="flat")
    assert flat.onset_offset_program_f1 == 1.0


def test_offsets_count_for_all_but_drums() -> None:
    heard = changed(offset_s=[1.0, 2.3, 1.0, 2.0, 5.0, 5.0])
    scores = instrument_scores(BAND, heard)
    assert scores.onset_program_f1 == scores.drum_onset_f1 == 1.0
    assert scores.onset_offset_program_recall == pytest.approx(5 / 6)
    assert scores.pitched_onset_offset_program_recall == 0.75
    assert instrument_scores(BAND, heard, offset_ratio=0.5).onset_offset_program_f1 == 1.0


def test_a_drum_is_no_pitched_note_and_its_kit_does_not_matter() -> None:
    pitched = changed(is_drum=[False] * 6)
    scores = instrument_scores(BAND, pitched)
    assert scores.drum_onset_f1 == 0.0
    assert scores.pitched_onset_offset_program_precision == pytest.approx(4 / 6)
    other_kit = changed(program=[0, 0, 42, 42, 8, 8])
    assert instrument_scores(BAND, other_kit).onset_offset_program_f1 == 1.0


def test_empty_sides() -> None:
    nothing = Notes.empty()
    silence = instrument_scores(nothing, nothing).as_dict()
    assert silence.pop("program_switches") == 0.0
    drums_of_silence = [silence.pop(f"drum_onset_{rate}") for rate in ("precision", "recall", "f1")]
    assert np.isnan(drums_of_silence).all()
    assert set(silence.values()) == {1.0}
    for pair in ((BAND, nothing), (nothing, BAND)):
        assert set(instrument_scores(*pair).as_dict().values()) == {0.0}
    drums = BAND[BAND.is_drum]
    assert instrument_scores(drums, drums).pitched_onset_offset_program_f1 == 1.0


def test_frames_are_those_of_the_papers_evaluation() -> None:
    """62.5 frames a second rounded down, short notes lengthened, soft references not expected."""
    reference = Notes.from_arrays([0.0, 1.0], [0.5, 1.5], [60, 60], [80, 30])
    estimate = Notes.from_arrays([0.25, 2.0], [0.75, 2.001], [60, 70], 127)
    scores = instrument_scores(reference, estimate)
    overlap, expected, heard = 31 - 15, 31, (46 - 15) + (128 - 125)
    assert scores.frame_precision == pytest.approx(overlap / heard)
    assert scores.frame_recall == pytest.approx(overlap / expected)
    doubled = Notes.concat([reference, reference[1:]])
    assert instrument_scores(doubled, estimate).frame_recall == pytest.approx(overlap / 62)


def test_switches_are_counted_along_each_instrument() -> None:
    onset_s = np.arange(8) * 0.5
    melody = Notes.from_arrays(onset_s, onset_s + 0.4, 60 + np.arange(8), program=40)
    heard = replace(melody, program=np.array([40, 40, 41, 41, 40, 40, 40, 73]))
    assert count_program_switches(melody, heard) == (3, 7)
    assert count_program_switches(melody, heard, granularity="midi_class") == (1, 7)
    assert instrument_scores(melody, heard).program_switches == pytest.approx(3 / 7)
    missing = heard[[0, 1, 4, 5, 6]]
    assert count_program_switches(melody, missing) == (0, 4)
    bass = Notes.from_arrays(onset_s, onset_s + 0.4, 40 - np.arange(8), program=32)
    assert count_program_switches(*(Notes.concat([n, bass]) for n in (melody, heard))) == (3, 14)
    # A wrong instrument that stays is no switch.
    assert count_program_switches(melody, replace(melody, program=np.full(8, 73))) == (0, 7)


def test_each_instrument_alone() -> None:
    heard = changed(program=[0, 0, 42, 73, 0, 0])
    table = onset_offset_by_instrument(BAND, heard)
    assert list(table) == ["Acoustic Grand Piano", "Cello", "Flute", "Drums"]
    assert table["Acoustic Grand Piano"] == table["Drums"] == (1.0, 1.0, 1.0)
    assert table["Cello"] == (1.0, 0.5, pytest.approx(2 / 3))
    assert table["Flute"] == (0.0, 0.0, 0.0)


def test_sweep() -> None:
    sweep = tolerance_sweep(BAND, BAND.shift(0.08))
    assert sweep.tolerance_s.tolist() == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    assert sweep.f1.tolist() == sweep.recall.tolist() == sweep.precision.tolist()
    assert sweep.f1.tolist() == [0, 0, 0, 1, 1, 1]
    longer = replace(BAND, offset_s=BAND.offset_s + 0.3)
    assert tolerance_sweep(BAND, longer, [0.05, 0.3]).recall.tolist() == [0.0, 1.0]
    with pytest.raises(DataError, match="tolerances_s is empty"):
        tolerance_sweep(BAND, BAND, [])


def test_means_are_of_one_kind_of_scores() -> None:
    best, worst = instrument_scores(BAND, BAND), instrument_scores(BAND, Notes.empty())
    mean = mean_scores([best, worst])
    assert isinstance(mean, InstrumentScores)
    assert mean.onset_offset_program_f1 == mean.frame_recall == 0.5


def test_drums_are_averaged_over_pieces_with_drums() -> None:
    piano = BAND[~BAND.is_drum]
    without = instrument_scores(piano, piano)
    scores = [instrument_scores(BAND, BAND), instrument_scores(BAND, piano), without]
    mean = mean_scores(scores)
    assert mean.drum_onset_f1 == mean.drum_onset_recall == 0.5
    assert mean.pitched_onset_offset_program_f1 == 1.0
    assert np.isnan(mean_scores([without]).drum_onset_f1)
    invented = instrument_scores(piano, BAND)  # drums where there are none do count
    assert mean_scores([scores[0], invented]).drum_onset_f1 == 0.5


def test_programs_of_one_family_are_one_instrument() -> None:
    heard = changed(program=[0, 0, 40, 56, 0, 0])
    found = family_scores(BAND, heard)
    expected = instrument_scores(BAND, heard, granularity="midi_class")
    assert found.onset_family_f1 == expected.onset_program_f1 == pytest.approx(5 / 6)
    assert found.onset_offset_family_recall == expected.onset_offset_program_recall


# MT3's evaluation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated() -> list[tuple[Notes, Notes, dict[str, float]]]:
    stored = np.load(FIXTURES / "metrics.npz")
    sides = [
        [
            Notes.from_arrays(*rows.T)
            for rows in np.split(stored[side], np.cumsum(stored[f"{side}_pieces"])[:-1])
        ]
        for side in ("reference", "estimate")
    ]
    return list(zip(*sides, json.loads(str(stored["scores"])), strict=True))


def test_scores_are_those_of_the_original(evaluated) -> None:
    assert len(evaluated) == 3
    rates = ("precision", "recall", "F1")
    for reference, estimate, theirs in evaluated:
        for granularity in ("flat", "midi_class", "full"):
            ours = instrument_scores(reference, estimate, granularity=granularity).as_dict()
            for name, field in (
                ("Onset + offset + program", "onset_offset_program"),
                ("Nondrum onset + offset + program", "pitched_onset_offset_program"),
                ("Drum onset", "drum_onset"),
            ):
                for rate in rates:
                    expected = theirs[f"{name} {rate} ({granularity})"]
                    found = ours[f"{field}_{rate.lower()}"]
                    assert found == pytest.approx(expected, abs=1e-9), (name, rate, granularity)
            for rate in rates:
                frame = ours[f"frame_{rate.lower()}"]
                assert frame == pytest.approx(theirs[f"Frame {rate}"], abs=1e-9), rate
        sweep = tolerance_sweep(reference, estimate)
        for place, tolerance_s in enumerate(sweep.tolerance_s.tolist()):
            for rate in rates:
                found = getattr(sweep, rate.lower())[place]
                expected = theirs[f"Onset + offset {rate} ({tolerance_s})"]
                assert found == pytest.approx(expected, abs=1e-9), (rate, tolerance_s)
