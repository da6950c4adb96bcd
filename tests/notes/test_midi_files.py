"""Standard MIDI files: foreign ones read right, ours read by others, damaged ones refused."""

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import DataError
from musicjax.notes import Note, Notes, Pedal, midi_bytes, parse_midi, read_midi, write_midi


def smf(*tracks: bytes, division: int = 480, kind: int = 1) -> bytes:
    """A MIDI file of tracks given as event bytes, without their end-of-track events."""
    chunks = [track + b"\x00\xff\x2f\x00" for track in tracks]
    header = b"MThd" + struct.pack(">IHHH", 6, kind, len(chunks), division)
    return header + b"".join(b"MTrk" + struct.pack(">I", len(c)) + c for c in chunks)


def test_running_status_velocity_zero_and_tempo_changes() -> None:
    conductor = b"\x00\xff\x51\x03\x07\xa1\x20" + b"\x83\x60\xff\x51\x03\x0f\x42\x40"
    melody = b"\x00\x90\x3c\x40" + b"\x83\x60\x3c\x00" + b"\x00\x3e\x50" + b"\x83\x60\x3e\x00"
    notes = parse_midi(smf(conductor, melody))
    # 120 beats a minute for one beat, then 60.
    assert list(notes) == [Note(0.0, 0.5, 60, 64), Note(0.5, 1.5, 62, 80)]


def test_smpte_time_ignores_tempo() -> None:
    division = (256 - 25) << 8 | 40  # 25 frames of 40 ticks: milliseconds
    track = b"\x00\xff\x51\x03\x01\x00\x00" + b"\x64\x90\x3c\x40" + b"\x64\x80\x3c\x40"
    assert list(parse_midi(smf(track, division=division))) == [Note(0.1, 0.2, 60, 64)]


def test_a_release_ends_all_that_began_before_it() -> None:
    track = b"\x00\x90\x3c\x40" + b"\x60\x90\x3c\x50" + b"\x60\x80\x3c\x00" + b"\x60\x80\x3c\x00"
    notes = parse_midi(smf(track, division=96))
    assert [(n.onset_s, n.offset_s) for n in notes] == [(0.0, 1.0), (0.5, 1.0)]


def test_a_note_struck_at_the_tick_of_a_release_sounds_on() -> None:
    track = b"\x00\x90\x3c\x40" + b"\x60\x90\x3c\x50" + b"\x00\x80\x3c\x00" + b"\x60\x80\x3c\x00"
    notes = parse_midi(smf(track, division=96))
    assert [(n.onset_s, n.offset_s) for n in notes] == [(0.0, 0.5), (0.5, 1.0)]
    alone = b"\x00\x90\x3c\x40" + b"\x00\x80\x3c\x00" + b"\x60\x90\x3e\x40" + b"\x60\x80\x3e\x40"
    assert parse_midi(smf(alone, division=96)).offset_s.tolist() == [0.0, 1.0]


def test_unreleased_notes_end_with_their_track() -> None:
    track = b"\x00\x90\x3c\x40" + b"\x60\xb0\x07\x40"
    assert parse_midi(smf(track, division=96)).duration_s == pytest.approx(0.5, abs=0.01)


def test_programs_set_on_another_track_and_changed_on_the_way() -> None:
    setup = b"\x00\xc0\x28" + b"\x60\xc0\x29"
    music = (
        b"\x00\x90\x3c\x40\x30\x3c\x00"
        + b"\x30\x3e\x40\x30\x3e\x00"
        + b"\x00\x99\x24\x40\x10\x24\x00"
    )
    notes = parse_midi(smf(setup, music, division=96))
    assert notes.program.tolist() == [40, 41, 0]
    assert notes.is_drum.tolist() == [False, False, True]


def test_system_events_texts_and_strange_chunks_are_passed_over() -> None:
    track = (
        b"\x00\xf0\x03\x01\x02\xf7"
        + b"\x00\xff\x01\x02hi"
        + b"\x00\xe0\x00\x40"
        + b"\x00\xd0\x11"
        + b"\x00\xa0\x3c\x01"
        + b"\x00\x90\x3c\x40"
        + b"\x00\xff\x01\x00"
        + b"\x60\x3c\x00"
    )
    data = smf(track, division=96)
    odd = data[:14] + b"XFIH\x00\x00\x00\x02ab" + data[14:]
    riff = b"RIFF\x00\x00\x00\x00RMIDdata\x00\x00\x00\x00" + data
    for form in (data, odd, riff, data + b"\x00trailing"):
        assert list(parse_midi(form)) == [Note(0.0, 0.5, 60, 64)]


def test_pedals_belong_to_the_program_of_their_channel() -> None:
    track = (
        b"\x00\xc1\x05\x00\xb1\x40\x7f\x60\xb1\x43\x20\x00\xb9\x40\x7f\x00\x91\x3c\x40\x60\x3c\x00"
    )
    pedal = parse_midi(smf(track, division=96)).pedal
    assert pedal == Pedal.from_arrays([0.0, 0.5], [127, 32], [64, 67], [5, 5])


def test_each_channel_has_its_own_pedal_when_a_file_is_sustained() -> None:
    left = b"\x00\xb0\x40\x7f\x00\x90\x3c\x40\x60\x3c\x00\x60\xb0\x40\x00"
    right = b"\x00\x91\x48\x40\x60\x48\x00"
    data = smf(left, right, division=96)
    assert parse_midi(data, sustained=True).offset_s.tolist() == [1.0, 0.5]
    assert parse_midi(data).sustained().offset_s.tolist() == [1.0, 1.0]


def test_more_programs_than_channels_are_all_kept() -> None:
    programs = np.arange(128)
    notes = Notes.from_arrays(programs / 10, programs / 10 + 1, programs, 80, programs)
    kits = Notes.from_arrays([0.0, 0.0], [0.5, 0.5], [36, 36], program=[0, 25], is_drum=True)
    band = Notes.concat([notes, kits]).sorted()
    heard = parse_midi(midi_bytes(band))
    np.testing.assert_array_equal(heard.program, band.program)
    np.testing.assert_array_equal(heard.is_drum, band.is_drum)


def test_velocity_length_and_overlap_limits() -> None:
    notes = Notes.from_arrays([0.0, 0.0, 0.25], [4.0, 1.0, 0.25], [60, 60, 60], [0, 64, 127])
    heard = parse_midi(midi_bytes(notes))
    assert heard.velocity.tolist() == [64, 1, 127]
    assert heard.offset_s.tolist()[:2] == [1.0, 4.0]
    assert 0 < heard.offset_s[2] - heard.onset_s[2] < 1e-3


@pytest.mark.parametrize("last_s", [5000.0, 5208.3325, 5208.3331, 10416.6656, 10416.6667, 36000.3])
def test_long_pieces_keep_their_grid_and_stay_readable(last_s: float) -> None:
    notes = Notes.from_arrays([1.0003, last_s - 1], [2.0, last_s], [60, 60])
    data = midi_bytes(notes)
    heard = parse_midi(data)
    np.testing.assert_allclose(heard.offset_s, notes.offset_s, atol=1.05e-3)
    assert midi_bytes(heard) == data
    ticks_per_beat = int.from_bytes(data[12:14], "big")
    assert ticks_per_beat == 240 or last_s * 2 * ticks_per_beat < 1e7  # what pretty_midi accepts


def test_days_of_music_are_refused() -> None:
    with pytest.raises(DataError, match="days of music"):
        midi_bytes(Notes.from_arrays([0.0], [1e6], [60]))


def test_times_before_zero_are_refused() -> None:
    with pytest.raises(DataError, match=r"first event is at -0\.500 s"):
        midi_bytes(Notes.from_arrays([-0.5], [1.0], [60]))
    with pytest.raises(DataError, match=r"first event is at -1\.000 s"):
        midi_bytes(Notes.from_arrays([0.0], [1.0], [60], pedal=Pedal.from_arrays([-1.0], [64])))


def test_files_and_streams(tmp_path: Path) -> None:
    notes = Notes.from_arrays([0.0, 0.5], [0.4, 1.0], [60, 62], pedal=Pedal.from_arrays([0], [9]))
    write_midi(notes, tmp_path / "a.mid")
    stream = io.BytesIO()
    write_midi(notes, stream)
    assert (tmp_path / "a.mid").read_bytes() == stream.getvalue()
    stream.seek(0)
    assert read_midi(stream) == read_midi(str(tmp_path / "a.mid")).sorted()
    empty = parse_midi(midi_bytes(Notes.empty()))
    assert empty == Notes.empty()


SOUND = smf(b"\x00\x90\x3c\x40" + b"\x60\x80\x3c\x40", division=96)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"fLaC....", "begins with b'fLaC' where b'MThd'"),
        (SOUND[:10], "ends inside its header"),
        (SOUND[:-6], "cut short"),
        (SOUND[:14], "has 0 of the 1 tracks"),
        (smf(b"\x00\x90\x3c\x40", division=0), "division is 0"),
        (smf(b"\x00\x90\x3c\x40", division=0x8000), "means nothing"),
        (smf(b"\x00\x3c\x40"), "stands where an event was expected"),
        (smf(b"\x00\x90\x3c\x90"), "stands where an event was expected"),
        (smf(b"\x00\xf4\x00"), "0xf4 stands where"),
        (smf(b"\x00\xff\x01\x7f"), "middle of an event"),
        (smf(b"\xff\xff\xff\xff\xff\xff\x7f\x90\x3c\x40"), "which no piece reaches"),
        (SOUND[:18] + b"\x00\x00\x00\x02" + SOUND[22:24], "middle of an event"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(
    data: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "song.mid"
    path.write_bytes(data)
    with pytest.raises(DataError, match=sentence) as error:
        read_midi(path)
    assert "song.mid' is not a sound MIDI file" in str(error.value)


def test_any_broken_bytes_give_notes_or_a_sentence() -> None:
    sound = midi_bytes(Notes.from_arrays(np.arange(9), np.arange(9) + 1.5, np.arange(60, 69)))
    rng = np.random.default_rng(3)
    for _ in range(300):
        broken = bytearray(sound[: rng.integers(14, len(sound) + 1)])
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(0, 256)
        with contextlib.suppress(DataError):
            assert isinstance(parse_midi(bytes(broken)), Notes)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no MIDI file"):
        read_midi(tmp_path / "absent.mid")
    with pytest.raises(DataError, match="is a folder"):
        read_midi(tmp_path)


def test_other_readers_agree(tmp_path: Path) -> None:
    import pretty_midi

    rng = np.random.default_rng(5)
    onset_s = rng.uniform(0, 60, 400)
    notes = Notes.from_arrays(
        onset_s,
        onset_s + rng.exponential(0.6, 400) + 0.01,
        rng.integers(40, 80, 400),
        rng.integers(1, 128, 400),
        rng.choice([0, 24, 40], 400),
        rng.random(400) < 0.2,
        pedal=Pedal.from_arrays(np.arange(20), rng.integers(0, 128, 20)),
    )
    write_midi(notes, tmp_path / "a.mid")
    piece = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid"))
    theirs = Notes.from_notes(
        Note(n.start, n.end, n.pitch, n.velocity, part.program, part.is_drum)
        for part in piece.instruments
        for n in part.notes
    ).sorted()
    ours = read_midi(tmp_path / "a.mid")
    assert len(ours) == len(theirs) == 400
    np.testing.assert_allclose(ours.onset_s, theirs.onset_s, atol=1e-9)
    np.testing.assert_allclose(ours.offset_s, theirs.offset_s, atol=1e-9)
    for mine, other in zip(ours.columns()[2:], theirs.columns()[2:], strict=True):
        np.testing.assert_array_equal(mine, other)
    piano = [part for part in piece.instruments if part.program == 0 and not part.is_drum]
    assert [len(part.control_changes) for part in piano if part.control_changes] == [20]
