"""Scores of transcribing several instruments, as MT3's evaluation has them (ICLR 2022, section 4).

Notes are matched instrument by instrument: pitch within 50 cents, onset within 50 ms and, where
offsets count, the offset within the larger of 50 ms and 20 % of the reference's length. Instruments
are General MIDI programs as a granularity tells them apart (`coarser_programs`); the drum kit is
one instrument more, whose offsets never count. Hits, reference notes and estimated notes are summed
over instruments before precision, recall and F1 are taken.

- onset_program: onset, pitch and instrument;
- onset_offset_program: also the offset, except of drums. This is the paper's multi-instrument F1;
- pitched_onset_offset_program: the same without drums;
- drum_onset: drums alone; nan where neither side has any, so that a mean is of pieces with drums;
- frame: all pitched instruments as one piano roll of 62.5 frames a second, notes lengthened to at
  least 50 ms, the reference's only where it is louder than velocity 30 (velocities of notes that
  overlap on one pitch are added);
- program_switches: how often the instrument that is heard changes from one note of a real
  instrument to its next, from 0 to 1; 0 is good. Of the reference's notes that were found
  (onset and pitch, whatever the program), in order of onset. Not of the paper.

Scores that do not look at programs are those of `note_scores`; `family_scores` takes the programs
of a family of General MIDI for one instrument. Averages over pieces are means of each score
(`mean_scores`).

Differences: the drum kit's program is not compared (MT3: kits of two programs are two instruments);
where reference and estimate are both empty a score is 1 (there 0), as everywhere in musicjax, but
drum_onset is nan (mir_eval and MT3: 0): a piano piece says nothing of how drums are heard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from musicjax.errors import DataError
from musicjax.metrics.transcription import (
    OFFSET_MIN_TOLERANCE_S,
    OFFSET_RATIO,
    ONSET_TOLERANCE_S,
    Scores,
    match_note_pairs,
    rates,
)
from musicjax.notes.notes import Notes
from musicjax.notes.programs import Granularity, coarser_programs, program_name

FRAMES_PER_S = 62.5
FRAME_MIN_NOTE_S = 0.05
FRAME_SILENT_VELOCITY = 30  # up to it a reference note is not expected to be heard
SWEEP_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DRUMS = -1  # stands where a program would


@dataclass(frozen=True)
class InstrumentScores(Scores):
    """Precision, recall and F1, each from 0 to 1, of one piece or the mean of several."""

    onset_program_precision: float
    onset_program_recall: float
    onset_program_f1: float
    onset_offset_program_precision: float
    onset_offset_program_recall: float
    onset_offset_program_f1: float
    pitched_onset_offset_program_precision: float
    pitched_onset_offset_program_recall: float
    pitched_onset_offset_program_f1: float
    drum_onset_precision: float
    drum_onset_recall: float
    drum_onset_f1: float
    frame_precision: float
    frame_recall: float
    frame_f1: float
    program_switches: float


def instrument_scores(
    reference: Notes,
    estimate: Notes,
    onset_tolerance_s: float = ONSET_TOLERANCE_S,
    *,
    granularity: Granularity = "full",
    offset_ratio: float = OFFSET_RATIO,
    offset_min_tolerance_s: float = OFFSET_MIN_TOLERANCE_S,
) -> InstrumentScores:
    """Score estimated notes against reference notes of one piece; see the module for the rules."""
    onset, offset = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    drums = np.zeros(3, dtype=np.int64)
    for program, ours, theirs in _instruments(reference, estimate, granularity):
        counts = np.array([len(ours), len(theirs)])
        hits = len(match_note_pairs(ours, theirs, onset_tolerance_s, offset_ratio=None))
        onset += [hits, *counts]
        if program == DRUMS:
            drums += [hits, *counts]
            continue
        pairs = match_note_pairs(
            ours,
            theirs,
            onset_tolerance_s,
            offset_ratio=offset_ratio,
            offset_min_tolerance_s=offset_min_tolerance_s,
        )
        offset += [len(pairs), *counts]
    switches, chances = count_program_switches(
        reference, estimate, onset_tolerance_s, granularity=granularity
    )
    return InstrumentScores(
        *rates(*onset.tolist()),
        *rates(*(offset + drums).tolist()),
        *rates(*offset.tolist()),
        *(rates(*drums.tolist()) if drums.any() else (np.nan,) * 3),
        *rates(*_frame_counts(reference, estimate)),
        switches / chances if chances else 0.0,
    )


@dataclass(frozen=True)
class FamilyScores(Scores):
    """Precision, recall and F1, each from 0 to 1, where a family counts as one instrument."""

    onset_family_precision: float
    onset_family_recall: float
    onset_family_f1: float
    onset_offset_family_precision: float
    onset_offset_family_recall: float
    onset_offset_family_f1: float


def family_scores(reference: Notes, estimate: Notes) -> FamilyScores:
    """onset_program and onset_offset_program of `instrument_scores` by families of eight programs.

    This is what a model can be right about that tells no more than the family.
    """
    scores = instrument_scores(reference, estimate, granularity="midi_class")
    return FamilyScores(
        scores.onset_program_precision,
        scores.onset_program_recall,
        scores.onset_program_f1,
        scores.onset_offset_program_precision,
        scores.onset_offset_program_recall,
        scores.onset_offset_program_f1,
    )


def onset_offset_by_instrument(
    reference: Notes, estimate: Notes, *, granularity: Granularity = "full"
) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 of each instrument of either side, by its General MIDI name.

    Onset and offset for programs, onset for "Drums". An instrument that only one side has scores 0.
    """
    table = {}
    for program, ours, theirs in _instruments(reference, estimate, granularity):
        ratio = None if program == DRUMS else OFFSET_RATIO
        hits = len(match_note_pairs(ours, theirs, ONSET_TOLERANCE_S, offset_ratio=ratio))
        name = "Drums" if program == DRUMS else program_name(program)
        table[name] = rates(hits, len(ours), len(theirs))
    return table


def count_program_switches(
    reference: Notes,
    estimate: Notes,
    onset_tolerance_s: float = ONSET_TOLERANCE_S,
    *,
    granularity: Granularity = "full",
) -> tuple[int, int]:
    """How often the heard instrument changes along the notes of each real one, and how often it
    could have: (switches, chances).

    Drums are left out. Notes are paired by onset and pitch alone; where one estimated note could
    answer several, any largest matching counts.
    """
    reference, estimate = (notes[~notes.is_drum] for notes in (reference, estimate))
    pairs = match_note_pairs(reference, estimate, onset_tolerance_s, offset_ratio=None)
    played = coarser_programs(reference.program.astype(np.int64), granularity)[pairs[:, 0]]
    heard = coarser_programs(estimate.program.astype(np.int64), granularity)[pairs[:, 1]]
    pitch, onset_s = reference.pitch[pairs[:, 0]], reference.onset_s[pairs[:, 0]]
    order = np.lexsort((pitch, onset_s, played))
    played, heard = played[order], heard[order]
    same = played[1:] == played[:-1]
    return int((same & (heard[1:] != heard[:-1])).sum()), int(same.sum())


@dataclass(frozen=True, eq=False)
class ToleranceSweep:
    """Onset and offset scores over tolerances: four arrays of one length."""

    tolerance_s: Float[np.ndarray, " tolerances"]
    precision: Float[np.ndarray, " tolerances"]
    recall: Float[np.ndarray, " tolerances"]
    f1: Float[np.ndarray, " tolerances"]


def tolerance_sweep(
    reference: Notes, estimate: Notes, tolerances_s: Sequence[float] = SWEEP_S
) -> ToleranceSweep:
    """How the onset and offset scores of pitched notes grow with the tolerance, programs ignored.

    Each tolerance is that of onsets and the least of offsets; 20 % of the length stays allowed.
    """
    if not len(tolerances_s):
        raise DataError("tolerances_s is empty: name at least one tolerance in seconds.")
    reference, estimate = (notes[~notes.is_drum] for notes in (reference, estimate))
    table = []
    for tolerance_s in tolerances_s:
        pairs = match_note_pairs(
            reference, estimate, tolerance_s, offset_min_tolerance_s=tolerance_s
        )
        table.append((tolerance_s, *rates(len(pairs), len(reference), len(estimate))))
    return ToleranceSweep(*np.array(table, dtype=np.float64).T)


def _instruments(
    reference: Notes, estimate: Notes, granularity: Granularity
) -> Iterator[tuple[int, Notes, Notes]]:
    """Each instrument of either side, drums last as `DRUMS`, with the notes of both sides."""
    sides = []
    for notes in (reference, estimate):
        program = coarser_programs(notes.program.astype(np.int64), granularity)
        sides.append((notes, np.where(notes.is_drum, DRUMS, program)))
    programs: Int[np.ndarray, " programs"] = np.unique(np.concatenate([p for _, p in sides]))
    for program in np.roll(programs, -1) if DRUMS in programs else programs:
        ours, theirs = (notes[column == program] for notes, column in sides)
        yield int(program), ours, theirs


def _frame_counts(reference: Notes, estimate: Notes) -> tuple[int, int, int]:
    """Cells of the piano roll that both sides have, that the reference has, and the estimate."""
    hits = references = estimates = 0
    sides = [_spans(notes[~notes.is_drum]) for notes in (reference, estimate)]
    num_frames = 1 + max(int(end.max(initial=0)) for _, _, end, _ in sides)
    for pitch in np.unique(np.concatenate([pitch for pitch, *_ in sides])):
        loud = []
        for column, first, end, velocity in sides:
            mine = column == pitch
            change = np.zeros(num_frames, dtype=np.int64)
            np.add.at(change, first[mine], velocity[mine])
            np.subtract.at(change, end[mine], velocity[mine])
            loud.append(np.cumsum(change))
        expected, heard = loud[0] > FRAME_SILENT_VELOCITY, loud[1] > 0
        hits += int((expected & heard).sum())
        references += int(expected.sum())
        estimates += int(heard.sum())
    return hits, references, estimates


def _spans(notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pitch, first frame, frame after the last, and velocity of each note."""
    short = notes.offset_s - notes.onset_s < FRAME_MIN_NOTE_S
    offset_s = np.where(short, notes.onset_s + FRAME_MIN_NOTE_S, notes.offset_s)
    first, end = (
        np.maximum(time_s * FRAMES_PER_S, 0).astype(np.int64)
        for time_s in (notes.onset_s, offset_s)
    )
    return notes.pitch, first, end, notes.velocity.astype(np.int64)
