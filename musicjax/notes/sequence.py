"""Notes to and from note-seq's NoteSequence, the protocol buffer of Magenta's tools.

note-seq takes seconds to import, so it is imported when a conversion is asked for.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from musicjax.errors import MissingDependencyError
from musicjax.notes.notes import PEDALS, Note, Notes, Pedal

if TYPE_CHECKING:
    from note_seq.protobuf.music_pb2 import NoteSequence

DRUM_INSTRUMENT = 9
# The resolution note-seq's MIDI export uses; its default of 220 would round times to 2.3 ms.
TICKS_PER_QUARTER = 960


def to_note_sequence(notes: Notes) -> "NoteSequence":
    """Notes and pedals as an unquantised NoteSequence, in the order of `notes.sorted()`.

    Each program gets an instrument number of its own: 0, 1, 2 and so on in order of appearance,
    without 9, which is for drums. note-seq's MIDI export keeps only the last program of those that
    share instrument 0, so a sequence of several programs must never leave it at the default.
    """
    music_pb2 = _music_pb2()
    sequence = music_pb2.NoteSequence(ticks_per_quarter=TICKS_PER_QUARTER)
    sequence.tempos.add(time=0.0, qpm=120.0)
    notes = notes.sorted()
    instruments = _instruments(notes)
    for note in notes:
        sequence.notes.add(
            start_time=note.onset_s,
            end_time=note.offset_s,
            pitch=note.pitch,
            velocity=note.velocity,
            program=note.program,
            is_drum=note.is_drum,
            instrument=instruments[note.is_drum, note.program],
        )
    if notes.pedal is not None:
        columns = (column.tolist() for column in notes.pedal.columns())
        for time_s, number, value, program in zip(*columns, strict=True):
            sequence.control_changes.add(
                time=time_s,
                control_number=number,
                control_value=value,
                program=program,
                instrument=instruments[False, program],
            )
    sequence.total_time = notes.duration_s
    return sequence


def from_note_sequence(sequence: "NoteSequence") -> Notes:
    """Sorted Notes and pedals of a NoteSequence; other content is left behind.

    Instruments of one program become one. Errors: DataError when a pitch, velocity or time is
    outside MIDI's range.
    """
    rows = [
        Note(n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum)
        for n in sequence.notes
    ]
    moves = [
        (c.time, c.control_number, c.control_value, c.program)
        for c in sequence.control_changes
        if c.control_number in PEDALS and not c.is_drum
    ]
    pedal = Pedal(*map(np.array, zip(*moves, strict=True))) if moves else None
    return Notes.from_notes(rows, pedal=pedal).sorted()


def _instruments(notes: Notes) -> dict[tuple[bool, int], int]:
    parts = list(zip(notes.is_drum.tolist(), notes.program.tolist(), strict=True))
    if notes.pedal is not None:
        parts += [(False, program) for program in notes.pedal.program.tolist()]
    pitched = [part for part in dict.fromkeys(parts) if not part[0]]
    numbers = {part: place + (place >= DRUM_INSTRUMENT) for place, part in enumerate(pitched)}
    kits = [part for part in dict.fromkeys(parts) if part[0]]
    free = max(DRUM_INSTRUMENT, *numbers.values(), 0) + 1
    for place, part in enumerate(kits):  # a second drum kit goes behind all else
        numbers[part] = DRUM_INSTRUMENT if place == 0 else free + place - 1
    return numbers


def _music_pb2() -> Any:
    try:
        from note_seq.protobuf import music_pb2
    except ImportError as error:
        raise MissingDependencyError(
            f"NoteSequence needs note-seq, which does not import here ({error}): "
            "run `pip install note-seq`, or write MIDI, CSV or JSON instead."
        ) from error
    return music_pb2
