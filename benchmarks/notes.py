"""Notes on their way: read from MIDI, scored, written as tokens and read back.

    python benchmarks/notes.py                  # a piece of ten thousand notes, about an hour
    python benchmarks/notes.py --notes 2000     # a short one

Reading is from bytes in memory to notes in seconds; mido only makes its messages, without times in
seconds or notes, and so does less. Scoring is the three note scores of a transcription; mir_eval is
called once for each, as its users do. Answers are compared before the clock starts.

Tokens are MT3's, for a piece of several instruments in segments of 2.048 s: a whole recording at
once, one segment at a random place after another, as training asks for them, and decoded. One
core does it; the peer is none, because the original needs TensorFlow's graph to do the same.
"""

import argparse
import importlib.util
import io
from collections.abc import Callable

import numpy as np
from harness import Case, Subject, compare
from mir_eval import transcription, transcription_velocity

from musicjax.metrics import note_scores
from musicjax.notes import Codec, Notes, Pedal, codec_config, midi_bytes, parse_midi

NOTES_PER_SECOND = 3.0
PROGRAMS = (0, 25, 33, 40, 42, 56, 73)
CLIPS = 100


def main() -> None:
    """Measure reading, scoring, encoding and decoding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--notes", type=int, default=10_000, help="notes in the piece")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    piece = performance(arguments.notes)
    for part, subjects in (("read_midi", readers(piece)), ("note_scores", scorers(piece))):
        case = Case(
            "notes",
            audio_s=piece.duration_s,
            dtype="float64",
            facts={"part": part, "notes": len(piece)},
        )
        compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)
    for part, audio_s, subject in tokenizers(ensemble(arguments.notes)):
        facts = {"part": part, "notes": arguments.notes}
        case = Case("notes", audio_s=audio_s, dtype="int32", facts=facts)
        compare(case, [subject], min_repeats=arguments.repeats, record=not arguments.dry_run)


def performance(count: int) -> Notes:
    """A random piece of piano notes with a pedal that changes every second."""
    rng = np.random.default_rng(0)
    length_s = count / NOTES_PER_SECOND
    onset_s = np.sort(rng.uniform(0, length_s, count))
    changes_s = np.arange(0, length_s)
    notes = Notes.from_arrays(
        onset_s,
        onset_s + 0.05 + rng.exponential(0.4, count),
        np.clip(rng.normal(64, 12, count).round(), 21, 108),
        rng.integers(20, 110, count),
        pedal=Pedal.from_arrays(changes_s, rng.integers(0, 128, len(changes_s))),
    )
    return parse_midi(midi_bytes(notes))


def readers(piece: Notes) -> list[Subject]:
    """Readers of the same bytes."""
    data = midi_bytes(piece)
    subjects = [Subject("musicjax", parse_midi, (data,))]
    for peer, read in (("pretty_midi", by_pretty_midi), ("mido", by_mido)):
        if importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed: left out (pip install {peer})")
            continue
        subjects.append(Subject(peer, read(len(piece)), (data,)))
    return subjects


def by_pretty_midi(count: int) -> Callable[[bytes], list]:
    """Reading to pretty_midi's notes."""
    import pretty_midi

    def read(data: bytes) -> list:
        piece = pretty_midi.PrettyMIDI(io.BytesIO(data))
        found = [note for part in piece.instruments for note in part.notes]
        assert len(found) == count, f"pretty_midi found {len(found)} of {count} notes"
        return found

    return read


def by_mido(count: int) -> Callable[[bytes], list]:
    """Reading to mido's messages."""
    import mido

    def read(data: bytes) -> list:
        tracks = mido.MidiFile(file=io.BytesIO(data)).tracks
        assert sum(map(len, tracks)) > 2 * count
        return tracks

    return read


def scorers(piece: Notes) -> list[Subject]:
    """Scores of an estimate that misses some notes and mishears times and velocities."""
    rng = np.random.default_rng(1)
    heard = piece[rng.random(len(piece)) < 0.9]
    onset_s = np.maximum(heard.onset_s + rng.normal(0, 0.02, len(heard)), 0)
    estimate = Notes.from_arrays(
        onset_s,
        np.maximum(heard.offset_s + rng.normal(0, 0.05, len(heard)), onset_s + 0.01),
        heard.pitch,
        np.clip(heard.velocity + rng.normal(0, 8, len(heard)).round(), 1, 127),
    )
    spans = [np.stack([n.onset_s, n.offset_s], axis=1) for n in (piece, estimate)]
    hz = [440 * 2 ** ((n.pitch - 69.0) / 12) for n in (piece, estimate)]
    velocity = [n.velocity.astype(float) for n in (piece, estimate)]
    sides = spans[0], hz[0], spans[1], hz[1]

    def by_mir_eval() -> list[float]:
        loud = spans[0], hz[0], velocity[0], spans[1], hz[1], velocity[1]
        return [
            transcription.precision_recall_f1_overlap(*sides, offset_ratio=None)[2],
            transcription.precision_recall_f1_overlap(*sides)[2],
            transcription_velocity.precision_recall_f1_overlap(*loud)[2],
        ]

    ours = note_scores(piece, estimate)
    expected = [ours.onset_f1, ours.onset_offset_f1, ours.onset_offset_velocity_f1]
    np.testing.assert_allclose(expected, by_mir_eval(), atol=2e-3)
    return [
        Subject("musicjax", note_scores, (piece, estimate)),
        Subject("mir_eval", by_mir_eval),
    ]


def ensemble(count: int) -> Notes:
    """A random piece for seven instruments and drums, ten notes a second."""
    rng = np.random.default_rng(2)
    onset_s = np.sort(rng.uniform(0, count / 10, count))
    return Notes.from_arrays(
        onset_s,
        onset_s + 0.05 + rng.exponential(0.5, count),
        np.clip(rng.normal(60, 12, count).round(), 21, 108),
        rng.integers(20, 110, count),
        rng.choice(PROGRAMS, count),
        rng.random(count) < 0.2,
    )


def tokenizers(piece: Notes) -> list[tuple[str, float, Subject]]:
    """What is measured, the seconds of music it handles, and who does it."""
    codec = Codec(codec_config("mt3", faithful=False))
    config = codec.config
    num_frames = int(piece.duration_s * config.frames_per_second) + 1
    encoded = codec.encode(piece, num_frames)
    heard = codec.decode(encoded)
    assert heard.report.invalid == 0 and len(heard.notes) > 0.95 * len(piece)
    starts_s = np.random.default_rng(3).uniform(0, piece.duration_s, CLIPS)
    clips_s = CLIPS * config.segment_frames / config.frames_per_second

    def clips() -> int:
        return sum(len(codec.encode_clip(piece, start_s)) for start_s in starts_s.tolist())

    return [
        ("encode", piece.duration_s, Subject("musicjax", codec.encode, (piece, num_frames))),
        ("encode_clips", clips_s, Subject("musicjax", clips)),
        ("decode", piece.duration_s, Subject("musicjax", codec.decode, (encoded,))),
    ]


if __name__ == "__main__":
    main()
