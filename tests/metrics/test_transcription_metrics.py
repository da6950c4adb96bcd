"""Note scores against hand-made cases, mir_eval itself, and its published fixtures."""

import json
from pathlib import Path

import numpy as np
import pytest

from musicjax.errors import DataError
from musicjax.metrics import NoteScores, mean_scores, note_scores
from musicjax.metrics.transcription import match_notes, match_velocities
from musicjax.notes import Notes

REFERENCE = Notes.from_arrays([0.0, 1.0, 2.0], [0.5, 2.0, 3.0], [60, 64, 67], [20, 60, 100])


def test_a_perfect_estimate_scores_one() -> None:
    scores = note_scores(REFERENCE, REFERENCE)
    assert set(scores.as_dict().values()) == {1.0}


def test_each_score_asks_for_more() -> None:
    estimate = Notes.from_arrays(
        [0.04, 1.04, 2.0, 3.0], [0.5, 2.3, 3.0, 3.2], [60, 64, 67, 72], [20, 60, 100, 50]
    )
    scores = note_scores(REFERENCE, estimate)
    assert (scores.onset_precision, scores.onset_recall) == (0.75, 1.0)
    assert scores.onset_f1 == pytest.approx(6 / 7)
    assert (scores.onset_offset_precision, scores.onset_offset_recall) == (0.5, 2 / 3)
    assert scores.onset_offset_velocity_recall == 2 / 3


def test_limits_are_included() -> None:
    at_limit = REFERENCE.shift(0.05)
    assert note_scores(REFERENCE, at_limit).onset_f1 == 1.0
    assert note_scores(REFERENCE, REFERENCE.shift(0.0502)).onset_f1 == 0.0
    assert note_scores(REFERENCE, REFERENCE.shift(0.09), 0.1).onset_f1 == 1.0
    # 20 % of a one-second note is 200 ms; half a second keeps 100 ms; 50 ms is the least.
    longer = Notes(REFERENCE.onset_s, REFERENCE.offset_s + 0.15, *REFERENCE.columns()[2:])
    assert note_scores(REFERENCE, longer).onset_offset_recall == pytest.approx(2 / 3)


def test_each_note_matches_once_and_the_largest_matching_counts() -> None:
    reference = Notes.from_arrays([0.0, 0.05], [1.0, 1.0], [60, 60])
    doubled = Notes.from_arrays([0.04, 0.04, 0.09], [1.0, 1.0, 1.0], [60, 60, 60])
    scores = note_scores(reference, doubled)
    assert (scores.onset_recall, scores.onset_precision) == (1.0, pytest.approx(2 / 3))


def test_velocity_is_judged_after_the_best_line() -> None:
    halved = Notes(*REFERENCE.columns()[:3], REFERENCE.velocity // 2 + 10, *REFERENCE.columns()[4:])
    assert note_scores(REFERENCE, halved).onset_offset_velocity_f1 == 1.0
    twisted = Notes(*REFERENCE.columns()[:3], [20, 100, 60], *REFERENCE.columns()[4:])
    assert note_scores(REFERENCE, twisted).onset_offset_velocity_f1 < 1.0


def test_empty_sides() -> None:
    nothing = Notes.empty()
    assert set(note_scores(nothing, nothing).as_dict().values()) == {1.0}
    for pair in ((REFERENCE, nothing), (nothing, REFERENCE)):
        assert set(note_scores(*pair).as_dict().values()) == {0.0}


def test_drums_are_left_out() -> None:
    kit = Notes.from_arrays([0.0], [0.1], [36], is_drum=True)
    assert note_scores(Notes.concat([REFERENCE, kit]), REFERENCE).onset_recall == 1.0


def test_frames_on_the_grid() -> None:
    reference = Notes.from_arrays([0.0], [1.0], [60])
    estimate = Notes.from_arrays([0.5, 0.0], [1.5, 0.2], [60, 61])
    scores = note_scores(reference, estimate, frame_s=0.1)
    assert scores.frame_precision == pytest.approx(5 / 12)
    assert scores.frame_recall == pytest.approx(5 / 10)
    assert scores.frame_f1 == pytest.approx(10 / 22)


def test_means_are_over_pieces() -> None:
    best, worst = note_scores(REFERENCE, REFERENCE), note_scores(REFERENCE, Notes.empty())
    mean = mean_scores([best, worst])
    assert isinstance(mean, NoteScores) and set(mean.as_dict().values()) == {0.5}
    with pytest.raises(DataError, match="no scores to average"):
        mean_scores([])


def test_agrees_with_mir_eval_on_a_crowded_piece() -> None:
    from mir_eval import transcription, transcription_velocity

    rng = np.random.default_rng(11)
    onset_s = rng.uniform(0, 40, 400)
    reference = Notes.from_arrays(
        onset_s,
        onset_s + rng.exponential(0.5, 400) + 0.02,
        rng.integers(55, 70, 400),
        rng.integers(20, 110, 400),
    )
    kept = np.flatnonzero(rng.random(400) < 0.8)
    estimate_onset_s = np.maximum(reference.onset_s[kept] + rng.normal(0, 0.03, len(kept)), 0)
    estimate = Notes.from_arrays(
        estimate_onset_s,
        estimate_onset_s + rng.exponential(0.5, len(kept)) + 0.02,
        reference.pitch[kept],
        np.clip(reference.velocity[kept] + rng.normal(0, 12, len(kept)), 1, 127).round(),
    )
    spans = [np.stack([n.onset_s, n.offset_s], axis=1) for n in (reference, estimate)]
    hz = [440 * 2 ** ((n.pitch - 69.0) / 12) for n in (reference, estimate)]
    scores = note_scores(reference, estimate)
    sides = spans[0], hz[0], spans[1], hz[1]
    for ratio, name in ((None, "onset"), (0.2, "onset_offset")):
        theirs = transcription.precision_recall_f1_overlap(*sides, offset_ratio=ratio)[:3]
        ours = [getattr(scores, f"{name}_{part}") for part in ("precision", "recall", "f1")]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    theirs = transcription_velocity.precision_recall_f1_overlap(
        spans[0], hz[0], reference.velocity, spans[1], hz[1], estimate.velocity
    )[:3]
    assert scores.onset_offset_velocity_precision == pytest.approx(theirs[0], abs=0.01)


def _columns(path: Path) -> np.ndarray:
    return np.loadtxt(path, comments="#", ndmin=2)


def _midi(hz: np.ndarray) -> np.ndarray:
    return 69 + 12 * np.log2(hz / 440)


def _rates(hits: int, reference: np.ndarray, estimate: np.ndarray) -> list[float]:
    precision, recall = hits / len(estimate), hits / len(reference)
    return [precision, recall, 2 * precision * recall / (precision + recall)]


@pytest.mark.parametrize("number", ["00", "01", "03", "04", "06", "07", "09"])
def test_mir_eval_transcription_fixtures(number: str, shared) -> None:
    folder = "data/mir_eval/transcription"
    reference = _columns(shared(f"{folder}/ref{number}.txt"))
    estimate = _columns(shared(f"{folder}/est{number}.txt"))
    expected = json.loads(shared(f"{folder}/output{number}.json").read_text())
    sides = reference[:, :2], _midi(reference[:, 2]), estimate[:, :2], _midi(estimate[:, 2])
    for ratio, suffix in ((0.2, ""), (None, "_no_offset")):
        hits = len(match_notes(*sides, offset_ratio=ratio))
        names = (f"Precision{suffix}", f"Recall{suffix}", f"F-measure{suffix}")
        published = [expected[name] for name in names]
        np.testing.assert_allclose(_rates(hits, reference, estimate), published, atol=1e-9)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 7, 9])
def test_mir_eval_velocity_fixtures(number: int, shared) -> None:
    folder = "data/mir_eval/transcription_velocity"
    reference = _columns(shared(f"{folder}/ref{number}.txt"))
    estimate = _columns(shared(f"{folder}/est{number}.txt"))
    expected = json.loads(shared(f"{folder}/output{number}.json").read_text())
    # The fixtures hold MIDI numbers and were scored as if those were Hz.
    sides = reference[:, :2], _midi(reference[:, 2]), estimate[:, :2], _midi(estimate[:, 2])
    for ratio, suffix in ((0.2, ""), (None, "_no_offset")):
        matches = match_notes(*sides, offset_ratio=ratio)
        kept = match_velocities(matches, reference[:, 3], estimate[:, 3])
        names = (f"Precision{suffix}", f"Recall{suffix}", f"F-measure{suffix}")
        published = [expected[name] for name in names]
        np.testing.assert_allclose(_rates(len(kept), reference, estimate), published, atol=1e-4)
