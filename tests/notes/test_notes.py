"""Notes as arrays: making, selecting, moving, and the sustain pedal."""

import io

import numpy as np
import pytest

from musicjax.errors import DataError
from musicjax.notes import Note, Notes, Pedal, pitch_name, program_name

CHORD = Notes.from_arrays([0.0, 0.5, 1.0], [0.4, 2.0, 1.5], [60, 64, 67], velocity=[10, 20, 30])


def test_sustained_holds_until_the_pedal_goes_up_or_the_pitch_returns() -> None:
    pedal = Pedal.from_arrays([0.2, 3.0], [127, 0])
    notes = Notes.from_arrays([0.0, 0.0, 1.0, 3.5], [0.1, 0.5, 1.2, 3.6], [60, 62, 62, 60], 64)
    heard = Notes(*notes.columns(), pedal=pedal).sustained()
    assert heard.offset_s.tolist() == [0.1, 1.0, 3.0, 3.6]
    assert heard.pedal is None
    assert notes.sustained() == notes


def test_sustained_without_a_release_lasts_to_the_end_and_spares_other_programs() -> None:
    pedal = Pedal.from_arrays([0.0], [100], program=[0])
    notes = Notes.from_arrays([0, 0, 4], [1, 1, 5], [60, 60, 72], program=[0, 40, 0], pedal=pedal)
    assert notes.sustained().offset_s.tolist() == [5.0, 1.0, 5.0]


def test_a_quick_repedalling_lets_go_of_what_was_held() -> None:
    pedal = Pedal.from_arrays([0.0, 2.0, 2.0, 9.0], [127, 0, 127, 0])
    notes = Notes.from_arrays([0.5, 2.5], [1.0, 3.0], [60, 64], pedal=pedal)
    assert notes.sustained().offset_s.tolist() == [2.0, 9.0]


def test_sustained_agrees_with_note_seq() -> None:
    from note_seq import sequences_lib

    from musicjax.notes import from_note_sequence, to_note_sequence

    rng = np.random.default_rng(7)
    onset_s = np.sort(rng.uniform(0, 60, 300))
    pedal_s = np.sort(rng.uniform(0, 60, 60))
    notes = Notes.from_arrays(
        onset_s,
        onset_s + rng.exponential(0.5, 300),
        rng.integers(50, 70, 300),
        rng.integers(1, 128, 300),
        pedal=Pedal.from_arrays(pedal_s, rng.integers(0, 128, 60)),
    )
    theirs = from_note_sequence(
        sequences_lib.apply_sustain_control_changes(to_note_sequence(notes))
    )
    ours = notes.sustained().sorted()
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours.offset_s, theirs.offset_s, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0, 1], [1], [60, 60]), "2 onsets but 1 offsets"),
        (([0.0], [np.nan], [60]), "offset_s must be finite"),
        (([2.0], [1.0], [60]), "ends at 1.000 s, before its onset"),
        (([0.0], [1.0], [128]), "pitch must be whole numbers from 0 to 127"),
        (([0.0], [1.0], [60.5]), "pitch must be whole"),
        (([0.0], [1.0], [60], [300]), "velocity must be whole"),
        (([0.0], [1.0], [60, 61]), "pitch must have one entry for each of 1 onsets"),
        (([[0.0]], [[1.0]], [[60]]), "onset_s must be a list of seconds"),
    ],
)
def test_impossible_notes_are_refused_in_a_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Notes.from_arrays(*arguments)


def test_impossible_pedals_are_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="Pedal number must be one of"):
        Pedal.from_arrays([0.0], [64], number=11)
    with pytest.raises(DataError, match="Pedal value must be whole"):
        Pedal.from_arrays([0.0], [200])


def test_arrays_are_copies_that_cannot_be_written() -> None:
    mine = np.array([0.0, 1.0])
    notes = Notes.from_arrays(mine, mine + 1, np.array([60, 61], dtype=np.int16))
    mine[0] = 0.5
    assert notes.onset_s[0] == 0.0
    for column in notes.columns():
        with pytest.raises(ValueError):
            column[0] = 1


def test_length_iteration_and_selection() -> None:
    assert len(CHORD) == 3 and len(Notes.empty()) == 0
    assert CHORD[1] == Note(0.5, 2.0, 64, 20)
    assert CHORD[-1].pitch == 67
    assert list(CHORD[1:]) == [CHORD[1], CHORD[2]]
    assert Notes.from_notes(CHORD) == CHORD
    assert CHORD[CHORD.pitch > 60] == CHORD[[1, 2]] != CHORD
    assert CHORD != "notes"
    assert (CHORD.duration_s, Notes.empty().duration_s) == (2.0, 0.0)


def test_sorting_is_by_onset_then_pitch() -> None:
    shuffled = CHORD[[2, 0, 1]]
    assert shuffled != CHORD
    assert shuffled.sorted() == CHORD


def test_slice_keeps_what_sounds_in_the_window() -> None:
    notes = Notes(*CHORD.columns(), pedal=Pedal.from_arrays([0.1, 0.7, 1.8], [90, 40, 0]))
    part = notes.slice(0.6, 1.2)
    assert part.pitch.tolist() == [64, 67]
    assert part.onset_s.tolist() == [0.5, 1.0]
    assert part.pedal is not None
    assert (part.pedal.time_s.tolist(), part.pedal.value.tolist()) == ([0.6, 0.7], [90, 40])
    cut = notes.slice(0.6, 1.2, clip=True)
    assert (cut.onset_s.tolist(), cut.offset_s.tolist()) == ([0.6, 1.0], [1.2, 1.2])
    assert len(notes.slice(0.4, 0.5)) == 0
    zero = Notes.from_arrays([1.0], [1.0], [60])
    assert len(zero.slice(1.0, 2.0)) == 1 and len(zero.slice(0.0, 1.0)) == 0


def test_shift_stretch_and_transpose() -> None:
    notes = Notes(*CHORD.columns(), pedal=Pedal.from_arrays([1.0], [90]))
    moved = notes.shift(1.5).stretch(2.0)
    assert moved.onset_s.tolist() == [3.0, 4.0, 5.0]
    assert moved.pedal is not None and moved.pedal.time_s.tolist() == [5.0]
    assert CHORD.transpose(12).pitch.tolist() == [72, 76, 79]
    assert CHORD.transpose(61).pitch.tolist() == [121, 125]
    drums = Notes.from_arrays([0], [1], [36], is_drum=True)
    assert drums.transpose(5) == drums
    with pytest.raises(DataError, match="stretch factor"):
        CHORD.stretch(0.0)


def test_concat_joins_notes_and_pedals() -> None:
    second = CHORD.shift(2.0)
    second = Notes(*second.columns(), pedal=Pedal.from_arrays([2.0], [127]))
    joined = Notes.concat([CHORD, second])
    assert len(joined) == 6 and joined[3:].pitch.tolist() == [60, 64, 67]
    assert joined.pedal == second.pedal
    assert Notes.concat([]) == Notes.empty()


def test_names_and_showing() -> None:
    assert [pitch_name(p) for p in (21, 60, 61, 108, 0)] == ["A0", "C4", "C#4", "C8", "C-1"]
    assert (program_name(0), program_name(40), program_name(127)) == (
        "Acoustic Grand Piano",
        "Violin",
        "Gunshot",
    )
    with pytest.raises(DataError, match="program must be from 0 to 127"):
        program_name(128)
    assert repr(CHORD) == "Notes(3 notes, 0.000-2.000 s, C4-G4, velocity 10-30)"
    assert repr(Notes.empty()) == "Notes(0 notes)"
    assert repr(Pedal.from_arrays([0, 1], [127, 0])) == "Pedal(2 events, 1 of them sustain down)"
    drawing = CHORD._repr_html_()
    assert drawing.count("<rect") == 3 and "3 notes" in drawing
    assert "0 notes" in Notes.empty()._repr_html_()


def test_rich_shows_a_table() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    many = Notes.concat([CHORD] * 6)
    console.print(many)
    text = console.export_text()
    assert "C4 (60)" in text and "Acoustic Grand Piano" in text and "and 6 more" in text
