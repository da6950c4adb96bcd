"""Scores of note transcription, by the conventions of mir_eval (Raffel et al., ISMIR 2014).

A reference note and an estimated note match when their pitches are within 50 cents and their onsets
within 50 ms; each note matches at most once, and the largest possible matching counts (Bay, Ehmann
and Downie, ISMIR 2009). Three note scores are reported, each as precision, recall and F1:

- onset: as above, offsets ignored;
- onset_offset: also the offset, within the larger of 50 ms and 20 % of the reference's length;
- onset_offset_velocity: also the velocity, within 0.1 of the reference's velocity range after the
  straight line that best maps matched estimated velocities to reference velocities (Hawthorne et
  al., ICLR 2019).

Times are rounded to 0.1 ms before comparing, and limits are included except the velocity's, as in
mir_eval. `frame` compares piano rolls of 32 ms frames (Onsets and Frames: hop 512 at 16 kHz);
papers that use 10 ms frames or exact overlaps report other numbers, and `frame_s` sets the grid.
Offsets count as they are given: pass `notes.sustained()` to score what is heard with the pedal, and
say so.

Differences from mir_eval: drums are left out, because they have no pitch. When reference and
estimate are both empty, every score is 1 (mir_eval: 0), so that silence heard as silence is right;
when one is empty every score is 0, as there. Matching is done pitch by pitch, which gives the same
counts in far less memory; where several largest matchings exist the velocity score may rest on
another one of them.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from musicjax.errors import DataError
from musicjax.notes.notes import Notes
from musicjax.notes.roll import piano_roll

ONSET_TOLERANCE_S = 0.05
PITCH_TOLERANCE_CENTS = 50.0
OFFSET_RATIO = 0.2
OFFSET_MIN_TOLERANCE_S = 0.05
VELOCITY_TOLERANCE = 0.1
FRAME_S = 512 / 16000


@dataclass(frozen=True)
class Scores:
    """What the scores of every task share: named numbers of one piece, or the mean of several."""

    def as_dict(self) -> dict[str, float]:
        """The scores by name, in a fixed order."""
        return asdict(self)


AnyScores = TypeVar("AnyScores", bound=Scores)


@dataclass(frozen=True)
class NoteScores(Scores):
    """Precision, recall and F1, each from 0 to 1, of one piece or the mean of several."""

    onset_precision: float
    onset_recall: float
    onset_f1: float
    onset_offset_precision: float
    onset_offset_recall: float
    onset_offset_f1: float
    onset_offset_velocity_precision: float
    onset_offset_velocity_recall: float
    onset_offset_velocity_f1: float
    frame_precision: float
    frame_recall: float
    frame_f1: float


def note_scores(
    reference: Notes,
    estimate: Notes,
    onset_tolerance_s: float = ONSET_TOLERANCE_S,
    *,
    offset_ratio: float = OFFSET_RATIO,
    offset_min_tolerance_s: float = OFFSET_MIN_TOLERANCE_S,
    velocity_tolerance: float = VELOCITY_TOLERANCE,
    frame_s: float = FRAME_S,
) -> NoteScores:
    """Score estimated notes against reference notes of one piece; see the module for the rules.

    Programs are not compared and drums are left out.
    """
    reference, estimate = (notes[~notes.is_drum] for notes in (reference, estimate))
    counts = len(reference), len(estimate)
    onset = match_note_pairs(reference, estimate, onset_tolerance_s, offset_ratio=None)
    offset = match_note_pairs(
        reference,
        estimate,
        onset_tolerance_s,
        offset_ratio=offset_ratio,
        offset_min_tolerance_s=offset_min_tolerance_s,
    )
    velocity = match_velocities(
        offset,
        reference.velocity.astype(np.float64),
        estimate.velocity.astype(np.float64),
        velocity_tolerance,
    )
    return NoteScores(
        *rates(len(onset), *counts),
        *rates(len(offset), *counts),
        *rates(len(velocity), *counts),
        *_frame_rates(reference, estimate, frame_s),
    )


def mean_scores(scores: Iterable[AnyScores]) -> AnyScores:
    """The mean of each score over pieces, as the field's tables report; F1 is the mean of F1s.

    A piece to which a score does not apply (nan) is left out of its mean; nan where none is left.
    """
    pieces = list(scores)
    if not pieces:
        raise DataError("There are no scores to average: score at least one piece.")
    table = np.array([tuple(piece.as_dict().values()) for piece in pieces], np.float64)
    counts = (~np.isnan(table)).sum(axis=0)
    means = np.nansum(table, axis=0) / np.where(counts, counts, np.nan)
    return type(pieces[0])(*means.tolist())


def match_note_pairs(
    reference: Notes,
    estimate: Notes,
    onset_tolerance_s: float = ONSET_TOLERANCE_S,
    *,
    offset_ratio: float | None = OFFSET_RATIO,
    offset_min_tolerance_s: float = OFFSET_MIN_TOLERANCE_S,
) -> Int[np.ndarray, "matches 2"]:
    """`match_notes` of two sets of Notes, whatever their programs; keys of drums are pitches."""
    mine, theirs = (
        (np.stack([n.onset_s, n.offset_s], axis=1), n.pitch.astype(np.float64))
        for n in (reference, estimate)
    )
    return match_notes(
        *mine,
        *theirs,
        onset_tolerance_s,
        offset_ratio=offset_ratio,
        offset_min_tolerance_s=offset_min_tolerance_s,
    )


def match_notes(
    reference_spans: Float[np.ndarray, "R 2"],
    reference_pitch: Float[np.ndarray, " R"],
    estimate_spans: Float[np.ndarray, "E 2"],
    estimate_pitch: Float[np.ndarray, " E"],
    onset_tolerance_s: float = ONSET_TOLERANCE_S,
    *,
    pitch_tolerance_cents: float = PITCH_TOLERANCE_CENTS,
    offset_ratio: float | None = OFFSET_RATIO,
    offset_min_tolerance_s: float = OFFSET_MIN_TOLERANCE_S,
) -> Int[np.ndarray, "matches 2"]:
    """The largest matching of reference and estimated notes, as rows of their two indices.

    Spans are onset and offset in seconds; pitches are MIDI numbers and may be fractional.
    `offset_ratio` None ignores offsets.
    """
    from mir_eval.transcription import match_notes as mir_eval_match

    found = [np.zeros((0, 2), dtype=np.int64)]
    groups = _pitch_groups(reference_pitch, estimate_pitch, pitch_tolerance_cents)
    for mine, theirs in groups:
        pairs = mir_eval_match(
            reference_spans[mine],
            _hz(reference_pitch[mine]),
            estimate_spans[theirs],
            _hz(estimate_pitch[theirs]),
            onset_tolerance=onset_tolerance_s,
            pitch_tolerance=pitch_tolerance_cents,
            offset_ratio=offset_ratio,
            offset_min_tolerance=offset_min_tolerance_s,
        )
        if pairs:
            rows = np.array(pairs)
            found.append(np.stack([mine[rows[:, 0]], theirs[rows[:, 1]]], axis=1))
    matches = np.concatenate(found)
    return matches[np.argsort(matches[:, 0], kind="stable")]


def match_velocities(
    matches: Int[np.ndarray, "matches 2"],
    reference_velocity: Float[np.ndarray, " R"],
    estimate_velocity: Float[np.ndarray, " E"],
    tolerance: float = VELOCITY_TOLERANCE,
) -> Int[np.ndarray, "kept 2"]:
    """Those matches whose velocities agree once the estimated ones are fitted to the reference."""
    if not len(matches):
        return matches
    low, high = reference_velocity.min(), reference_velocity.max()
    target = (reference_velocity[matches[:, 0]] - low) / max(1, high - low)
    heard = estimate_velocity[matches[:, 1]]
    line = np.stack([heard, np.ones(len(heard))], axis=1)
    fitted = line @ np.linalg.lstsq(line, target, rcond=None)[0]
    return matches[np.abs(fitted - target) < tolerance]


def _hz(pitch: np.ndarray) -> np.ndarray:
    return 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)


def _pitch_groups(
    reference: np.ndarray, estimate: np.ndarray, tolerance_cents: float
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Indices of both sides, parted wherever neighbouring pitches are too far apart to match."""
    pitches = np.unique(np.concatenate([reference, estimate]))
    far = np.diff(pitches) * 100 > tolerance_cents + 0.1  # a margin for rounding in log2
    edges = ((pitches[1:] + pitches[:-1]) / 2)[far]
    reference_group = np.searchsorted(edges, reference)
    estimate_group = np.searchsorted(edges, estimate)
    for group in np.intersect1d(reference_group, estimate_group):
        yield np.flatnonzero(reference_group == group), np.flatnonzero(estimate_group == group)


def rates(hits: int, references: int, estimates: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of so many hits; all 1 where neither side has anything."""
    if not references and not estimates:
        return 1.0, 1.0, 1.0
    precision = hits / estimates if estimates else 0.0
    recall = hits / references if references else 0.0
    return precision, recall, 2 * hits / (references + estimates)


def _frame_rates(reference: Notes, estimate: Notes, frame_s: float) -> tuple[float, float, float]:
    num_frames = 2 + round(max(reference.duration_s, estimate.duration_s) / frame_s)
    rolls = [
        piano_roll(notes, 1 / frame_s, num_frames, min_pitch=0, num_pitches=128).frame
        for notes in (reference, estimate)
    ]
    hits = int(np.count_nonzero(rolls[0] & rolls[1]))
    return rates(hits, *(int(np.count_nonzero(roll)) for roll in rolls))
