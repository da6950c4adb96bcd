"""Scores, one file a task, with the field's conventions in its docstring."""

from musicjax.metrics.instruments import (
    FamilyScores,
    InstrumentScores,
    ToleranceSweep,
    count_program_switches,
    family_scores,
    instrument_scores,
    onset_offset_by_instrument,
    tolerance_sweep,
)
from musicjax.metrics.transcription import NoteScores, Scores, mean_scores, note_scores

__all__ = [
    "FamilyScores",
    "InstrumentScores",
    "NoteScores",
    "Scores",
    "ToleranceSweep",
    "count_program_switches",
    "family_scores",
    "instrument_scores",
    "mean_scores",
    "note_scores",
    "onset_offset_by_instrument",
    "tolerance_sweep",
]
