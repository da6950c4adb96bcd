"""Scores, one file a task, with the field's conventions in its docstring."""

from musicjax.metrics.transcription import NoteScores, mean_scores, note_scores

__all__ = ["NoteScores", "mean_scores", "note_scores"]
