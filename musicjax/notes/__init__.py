"""Notes: what was played, and the files it is written to and read from."""

from musicjax.notes.bends import Bends
from musicjax.notes.codec import Codec
from musicjax.notes.decoding import Decoded, DecodingReport, TokenDecoder
from musicjax.notes.encoding import EncodingReport, SegmentTokens, Timeline
from musicjax.notes.events import Event, NoteOff, NoteOn, PitchFrame, events_to_notes
from musicjax.notes.grammar import Grammar
from musicjax.notes.midi import midi_bytes, parse_midi, read_midi, write_midi
from musicjax.notes.notes import SOFT, SOSTENUTO, SUSTAIN, Note, Notes, Pedal, pitch_name
from musicjax.notes.pieces import LongDecoder, PieceDecoder, onset_sureness
from musicjax.notes.programs import Granularity, coarser_programs, program_name
from musicjax.notes.roll import PianoRoll, from_piano_roll, piano_roll
from musicjax.notes.sequence import from_note_sequence, to_note_sequence
from musicjax.notes.tables import as_dict, from_dict, read_csv, read_json, write_csv, write_json
from musicjax.notes.thresholds import check_values
from musicjax.notes.vocabulary import (
    NO_QUIRKS,
    CodecConfig,
    Quirks,
    TokenClass,
    Vocabulary,
    codec_config,
)

__all__ = [
    "NO_QUIRKS",
    "SOFT",
    "SOSTENUTO",
    "SUSTAIN",
    "Bends",
    "Codec",
    "CodecConfig",
    "Decoded",
    "DecodingReport",
    "EncodingReport",
    "Event",
    "Grammar",
    "Granularity",
    "LongDecoder",
    "Note",
    "NoteOff",
    "NoteOn",
    "Notes",
    "Pedal",
    "PianoRoll",
    "PieceDecoder",
    "PitchFrame",
    "Quirks",
    "SegmentTokens",
    "Timeline",
    "TokenClass",
    "TokenDecoder",
    "Vocabulary",
    "as_dict",
    "check_values",
    "coarser_programs",
    "codec_config",
    "events_to_notes",
    "from_dict",
    "from_note_sequence",
    "from_piano_roll",
    "midi_bytes",
    "onset_sureness",
    "parse_midi",
    "piano_roll",
    "pitch_name",
    "program_name",
    "read_csv",
    "read_json",
    "read_midi",
    "to_note_sequence",
    "write_csv",
    "write_json",
    "write_midi",
]
