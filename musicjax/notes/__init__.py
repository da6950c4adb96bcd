"""Notes: what was played, and the files it is written to and read from."""

from musicjax.notes.midi import midi_bytes, parse_midi, read_midi, write_midi
from musicjax.notes.notes import SOFT, SOSTENUTO, SUSTAIN, Note, Notes, Pedal

__all__ = [
    "SOFT",
    "SOSTENUTO",
    "SUSTAIN",
    "Note",
    "Notes",
    "Pedal",
    "midi_bytes",
    "parse_midi",
    "read_midi",
    "write_midi",
]
