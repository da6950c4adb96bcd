"""CSV, JSON, NoteSequence and piano rolls: what is written, what is read, what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import DataError, OutputError
from musicjax.notes import (
    Notes,
    Pedal,
    from_note_sequence,
    from_piano_roll,
    parse_midi,
    piano_roll,
    read_csv,
    read_json,
    to_note_sequence,
    write_csv,
    write_json,
    write_midi,
)

BAND = Notes.from_arrays(
    [0.0, 0.1, 0.25, 1.0],
    [0.5, 0.9, 0.3, 2.0],
    [60, 43, 36, 72],
    velocity=[1, 64, 127, 90],
    program=[0, 32, 0, 65],
    is_drum=[False, False, True, False],
    pedal=Pedal.from_arrays([0.2, 1.5], [127, 0]),
)


def test_csv_text() -> None:
    text = io.StringIO()
    write_csv(BAND, text)
    assert text.getvalue() == (
        "onset_s,offset_s,pitch,velocity,program,is_drum\n"
        "0.000000,0.500000,60,1,0,0\n"
        "0.100000,0.900000,43,64,32,0\n"
        "0.250000,0.300000,36,127,0,1\n"
        "1.000000,2.000000,72,90,65,0\n"
    )


def test_files_hold_the_same_notes(tmp_path: Path) -> None:
    write_csv(BAND, tmp_path / "a.csv")
    write_json(BAND, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == BAND
    assert read_csv(tmp_path / "a.csv") == Notes(*BAND.columns())
    assert json.loads((tmp_path / "a.json").read_text())["notes"][0]["pitch"] == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


@pytest.mark.parametrize(
    "text",
    [
        "onset_s,offset_s,offset_with_pedal_s,midi_pitch,velocity,program,is_drum,track\n"
        '0.5,1.0,1.75,69,80,0,0,"one, two"\n',
        "OnsetTime\tOffsetTime\tMidiPitch\n0.5\t1.0\t69\n\n",
        "\ufeffstart_time;duration;pitch_hz\n0.5;0.5;441.0\n",
        "Onset,End,Note,Is Drum\n0.5,1.0,69,false\n",
    ],
)
def test_csv_of_other_collections(text: str) -> None:
    expected = Notes.from_arrays([0.5], [1.0], [69])
    assert read_csv(io.StringIO(text)) == expected
    with_pedal = read_csv(io.StringIO(text), sustained=True)
    assert with_pedal.offset_s[0] == (1.75 if "with_pedal" in text else 1.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; a CSV of notes begins with onset_s,offset_s"),
        ("a,b\n1,2\n", "no column for onset: its header is 'a,b'"),
        ("onset_s,pitch\n1,60\n", "no column for offset or duration"),
        ("onset_s,offset_s,pitch\n1,2\n", "row 2 has 2 cells"),
        ("onset_s,offset_s,pitch\n1,two,60\n", "offset that is no number"),
        ("onset_s,offset_s,pitch_hz\n1,2,0\n", "pitch must be whole numbers"),
        ("onset_s,offset_s,pitch,is_drum\n1,2,60,maybe\n", "'maybe' as is_drum"),
    ],
)
def test_damaged_csv_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_csv(io.StringIO(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a document of notes"),
        ('{"notes": [{"onset_s": 0, "pitch": 60}]}', "'offset_s' is missing"),
        ('{"notes": [{"onset_s": 0, "offset_s": 1, "pitch": 600}]}', "pitch must be whole"),
        ('{"notes": [{"onset_s": "x", "offset_s": 1, "pitch": 60}]}', "onset_s"),
        ('{"notes": [], "pedal": [{"time_s": 1}]}', "'value' is missing"),
    ],
)
def test_damaged_json_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_json(io.StringIO(text))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "song.csv"
    binary.write_bytes(b"RIFF\xff\xfe\x80")
    for read in (read_csv, read_json):
        with pytest.raises(DataError, match="There is no file"):
            read(tmp_path / "absent")
        with pytest.raises(DataError, match="not text in UTF-8"):
            read(binary)
        with pytest.raises(DataError, match="Cannot read"):
            read(tmp_path)


@pytest.mark.parametrize("write", [write_csv, write_json, write_midi])
def test_unwritable_places_are_refused(write, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write(BAND, tmp_path / "absent" / "out")
    with pytest.raises(OutputError, match="it is a folder"):
        write(BAND, tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "take.mid"
    target.write_bytes(b"the old take")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        write_midi(BAND, target)
    assert target.read_bytes() == b"the old take"
    assert [path.name for path in tmp_path.iterdir()] == ["take.mid"]


def test_note_sequence_there_and_back() -> None:
    sequence = to_note_sequence(BAND)
    assert from_note_sequence(sequence) == BAND.sorted()
    assert sequence.total_time == 2.0
    assert [note.instrument for note in sequence.notes] == [0, 1, 9, 2]
    assert {change.instrument for change in sequence.control_changes} == {0}
    assert from_note_sequence(to_note_sequence(Notes.empty())) == Notes.empty()


def test_note_sequence_export_keeps_every_program(tmp_path: Path) -> None:
    """note-seq's MIDI export loses programs that share instrument 0; ours must not."""
    from note_seq import midi_io

    programs = np.arange(14)
    many = Notes.from_arrays(programs * 0.25, programs * 0.25 + 0.2, 60 + programs, 80, programs)
    kit = Notes.from_arrays([0.0, 0.1], [0.2, 0.3], [36, 38], is_drum=True)
    many = Notes.concat([many, kit])
    path = tmp_path / "many.mid"
    midi_io.note_sequence_to_midi_file(to_note_sequence(many), str(path))
    heard = parse_midi(path.read_bytes())
    expected = many.sorted()
    np.testing.assert_array_equal(heard.program, expected.program)
    np.testing.assert_array_equal(heard.is_drum, expected.is_drum)
    np.testing.assert_allclose(heard.onset_s, expected.onset_s, atol=1e-4)


def test_piano_roll_cells() -> None:
    notes = Notes.from_arrays(
        [0.0, 0.2, 0.26, 0.5], [0.31, 0.2, 0.4, 0.6], [60, 61, 60, 20], [100, 50, 0, 9]
    )
    roll = piano_roll(notes, 10.0, 6)
    assert roll.frame.shape == (6, 88) and roll.velocity.dtype == np.uint8
    assert roll.velocity[:, 39].tolist() == [100, 100, 100, 1, 0, 0]
    assert np.flatnonzero(roll.onset[:, 39]).tolist() == [0, 3]
    assert np.flatnonzero(roll.frame[:, 40]).tolist() == [2]  # a note of no length fills a frame
    assert roll.frame.sum() == 5
    assert piano_roll(notes, 10.0).frame.shape == (4, 88)
    assert piano_roll(Notes.empty(), 10.0).frame.shape == (0, 88)
    assert piano_roll(notes.shift(-0.2), 10.0, 2).velocity[:, 39].tolist() == [100, 1]
    everything = piano_roll(notes, 10.0, min_pitch=0, num_pitches=128)
    assert everything.frame[5, 20]
    with pytest.raises(DataError, match="frames_per_s"):
        piano_roll(notes, 0.0)


def test_piano_roll_and_back() -> None:
    notes = Notes.from_arrays([0.0, 0.5, 0.5], [0.5, 1.0, 0.75], [60, 60, 64], [10, 20, 30])
    assert from_piano_roll(piano_roll(notes, 8.0)) == notes
    cut = piano_roll(notes.shift(-0.25), 8.0, 8)
    assert from_piano_roll(cut).onset_s.tolist() == [0.0, 0.25, 0.25]


def test_shared_clips_say_the_same_as_csv_and_midi(shared) -> None:
    from musicjax.notes import read_midi

    for name in ("piano_perf_1", "piano_perf_2", "lied_1", "drums_1"):
        table = read_csv(shared(f"data/clips/{name}.notes.csv"))
        midi = read_midi(shared(f"data/clips/{name}.mid"))
        assert len(table) == len(midi)
        np.testing.assert_array_equal(np.sort(table.pitch), np.sort(midi.pitch))
        np.testing.assert_allclose(table.onset_s, midi.onset_s, atol=1.1e-3)
    for name in ("piano_perf_1", "piano_perf_2", "piano_pop_2"):
        table = read_csv(shared(f"data/clips/{name}.notes.csv"), sustained=True)
        midi = read_midi(shared(f"data/clips/{name}.mid"), sustained=True)
        assert len(table) == len(midi)
        np.testing.assert_allclose(np.sort(table.offset_s), np.sort(midi.offset_s), atol=0.011)
