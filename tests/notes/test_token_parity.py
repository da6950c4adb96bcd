"""Tokens and notes against what the original made of the same pieces."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicjax.notes import NO_QUIRKS, Codec, CodecConfig, Notes, Quirks

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mt3_codec"
COLUMNS = ("onset_s", "offset_s", "pitch", "velocity", "program", "is_drum")


@pytest.fixture(scope="module")
def cases() -> list[tuple[dict, Notes, list[np.ndarray], np.ndarray]]:
    """Each case with its piece, its segments' ids and the notes that the original read in them."""
    stored = np.load(FIXTURES / "mt3_codec.npz")
    pieces = np.split(stored["notes"], np.cumsum(stored["pieces"])[:-1])
    streams = iter(np.split(stored["tokens"].astype(int), np.cumsum(stored["lengths"])[:-1]))
    decoded, result = stored["decoded"], []
    for case in json.loads(str(stored["cases"])):
        segments = [next(streams) for _ in range(case["segments"])]
        heard, decoded = decoded[: case["heard"]], decoded[case["heard"] :]
        piece = Notes.from_arrays(*pieces[case["piece"]].T)
        result.append((case, piece, segments, heard))
    assert not len(decoded) and next(streams, None) is None
    return result


def codec_of(case: dict) -> Codec:
    names = ("velocity_bins", "granularity", "ties", "onsets_only", "segment_frames")
    quirks = Quirks(overlaps=not case["trim"], start_rounding=case["start_rounding"])
    return Codec(CodecConfig(**{name: case[name] for name in names}, quirks=quirks))


def test_tokens_are_the_originals(cases) -> None:
    compared = 0
    for case, piece, segments, _ in cases:
        if case["damaged"]:
            continue
        encoded = codec_of(case).encode(piece, case["frames"])
        for place, (ours, theirs) in enumerate(zip(encoded, segments, strict=True)):
            np.testing.assert_array_equal(ours, theirs, f"segment {place} of {case}")
        compared += len(segments)
    assert compared > 300


def test_notes_are_the_originals_even_from_damaged_streams(cases) -> None:
    damaged = 0
    for case, _, segments, expected in cases:
        decoded = codec_of(case).decode(segments)
        report = decoded.report
        assert (report.invalid, report.dropped) == (case["invalid"], case["dropped"]), case
        notes = np.array(sorted(decoded.notes), dtype=np.float64).reshape(-1, 6)
        np.testing.assert_allclose(notes, expected, rtol=0, atol=1e-9, err_msg=str(case))
        damaged += case["damaged"]
    assert damaged == len(cases) // 2


def test_without_its_quirks_nothing_is_invalid(cases) -> None:
    """What the original's own targets leave invalid when they are decoded, ours do not."""
    theirs = 0
    for case, piece, _, _ in cases:
        if case["damaged"] or not case["ties"]:
            continue
        theirs += case["invalid"]
        codec = codec_of(case)
        mended = Codec(replace(codec.config, quirks=NO_QUIRKS))
        report = mended.decode(mended.encode(piece, case["frames"])).report
        assert report.invalid == report.dropped == 0
    assert theirs > 0
