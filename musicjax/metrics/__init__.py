"""Scores, one file a task, with the field's conventions in its docstring."""

from musicjax.metrics.instruments import (
    InstrumentScores,
    ToleranceSweep,
    count_program_switches,
    instrument_scores,
    onset_offset_by_instrument,
    tolerance_sweep,
)
from musicjax.metrics.transcription import NoteScores, Scores, mean_scores, note_scores

__all__ = [
    "InstrumentScores",
    "NoteScores",
    "Scores",
    "ToleranceSweep",
    "count_program_switches",
    "instrument_scores",
    "mean_scores",
    "note_scores",
    "onset_offset_by_instrument",
    "tolerance_sweep",
]
