"""Bends: they go with their notes through everything, and into MIDI and JSON and back."""

import io

import numpy as np
import pytest
from pretty_midi import PrettyMIDI

from musicjax.errors import DataError
from musicjax.notes import Bends, Notes, Pedal, as_dict, from_dict, midi_bytes, parse_midi

POINTS = [[(0.0, 0.5), (0.25, -0.25)], [], [(0.6, 1.0), (0.75, 0.0)], [(2.0, -5.0)]]


def bent(**changes):
    columns = {
        "onset_s": [0.0, 0.0, 0.5, 2.0],
        "offset_s": [0.5, 1.0, 1.0, 2.5],
        "pitch": [60, 67, 64, 72],
        "bends": Bends.from_points(POINTS),
    }
    return Notes.from_arrays(**(columns | changes))


def points(notes):
    return [
        list(zip(*map(np.ndarray.tolist, notes.bends.of(i)), strict=True))
        for i in range(len(notes))
    ]


def test_they_follow_their_notes():
    notes = bent()
    assert points(notes) == POINTS
    assert points(notes[np.array([2, 0])]) == [POINTS[2], POINTS[0]]
    assert points(notes[notes.pitch > 62]) == POINTS[1:]
    assert notes[1:2].bends is None
    order = np.lexsort((notes.pitch, notes.onset_s))
    assert points(notes.sorted()) == [POINTS[i] for i in order]
    later = notes.shift(1.0).stretch(2.0)
    assert points(later)[0] == [(2.0, 0.5), (2.5, -0.25)]
    assert points(notes.transpose(3)) == POINTS
    assert points(notes.sustained()) == POINTS
    flat = bent(bends=None)
    assert points(Notes.concat([flat, notes])) == [[], [], [], [], *POINTS]
    assert notes != flat and notes == bent()
    assert "3 notes bent" in repr(notes)
    assert repr(notes.bends) == "Bends(3 of 4 notes, 5 points)"


def test_what_does_not_fit_is_told():
    with pytest.raises(DataError, match="bends of 2 notes for 4 notes"):
        bent(bends=Bends.from_points([[], [(0.0, 1.0)]]))
    with pytest.raises(DataError, match="1 times and 1 values for 2 points"):
        Bends([2], [0.0], [1.0])
    with pytest.raises(DataError, match="NaN or infinity"):
        Bends([1], [np.nan], [1.0])
    assert bent(bends=Bends.none(4)).bends is None


def test_midi_keeps_them_on_channels_of_their_own():
    notes = bent()
    back = parse_midi(midi_bytes(notes), bends=True)
    assert parse_midi(midi_bytes(notes)) == bent(bends=None).sorted()  # unless they are asked for
    expected = notes.sorted()
    assert back[:] == back and len(back) == 4
    for got, wanted in zip(points(back), points(expected), strict=True):
        assert len(got) == len(wanted)
        np.testing.assert_allclose(np.reshape(got, (-1, 2)), np.reshape(wanted, (-1, 2)), atol=1e-3)
    # Notes that sound together while one of them bends have different channels.
    instruments = PrettyMIDI(io.BytesIO(midi_bytes(notes))).instruments
    assert len(instruments) == 2
    assert sorted(len(i.notes) for i in instruments) == [1, 3]
    assert all(i.program == 0 for i in instruments)


def test_a_wheel_is_back_in_the_middle_for_the_next_note():
    notes = Notes.from_arrays(
        [0.0, 1.0], [1.0, 2.0], [60, 62], bends=Bends.from_points([[(0.0, 1.0)], []])
    )
    (instrument,) = PrettyMIDI(io.BytesIO(midi_bytes(notes))).instruments
    wheel = [(bend.time, bend.pitch) for bend in instrument.pitch_bends]
    assert wheel == [(0.0, 4096), (1.0, 0)]
    assert points(parse_midi(midi_bytes(notes), bends=True)) == [[(0.0, 1.0)], []]


def test_pedals_reach_all_channels_and_come_back_once():
    notes = bent(pedal=Pedal.from_arrays([0.2, 0.9], [127, 0]))
    back = parse_midi(midi_bytes(notes), bends=True)
    assert back.pedal == notes.pedal
    instruments = PrettyMIDI(io.BytesIO(midi_bytes(notes))).instruments
    assert all(len(i.control_changes) >= 2 for i in instruments)


def test_json_keeps_them():
    notes = bent()
    document = as_dict(notes)
    assert document["notes"][0]["bend"] == [[0.0, 0.5], [0.25, -0.25]]
    assert "bend" not in document["notes"][1]
    assert from_dict(document) == notes
    document["notes"][0]["bend"] = [1.0]
    with pytest.raises(DataError, match="not a document of notes"):
        from_dict(document)
