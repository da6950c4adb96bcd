"""How well notes are heard: recordings of a sampled grand, and a sound font no training has used.

    python benchmarks/accuracy.py                          # shared clips and the held-out font
    python benchmarks/accuracy.py --model runs/mine/best.safetensors --dry-run

Four sets, each a mean over pieces of mir_eval's note scores (onset within 50 ms; a note lasts
until the pedal lets go):

    clips          piano clips with exact notes beside the project (a sampled Yamaha C5, dry)
    clips, rooms   the same in simulated rooms, with noise, colour and detuning
    font           test split of the scores, played as written by a sound font never trained on
    font, rooms    the same in rooms

Sets whose material is absent are left out, with a line that says so. Basic Pitch is scored on the
same sound when it is installed (see `transcribe.py`).
"""

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, environment
from transcribe import basic_pitch

import musicjax
from musicjax.audio import save_audio
from musicjax.data.augment import AugmentConfig, augment
from musicjax.data.fluidsynth import available
from musicjax.data.pipeline import examples
from musicjax.data.records import Example, to_float, to_int16
from musicjax.data.render import RenderConfig, render_corpus
from musicjax.metrics import mean_scores, note_scores
from musicjax.notes import Notes
from musicjax.tasks.transcribe import evaluate

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
SCORES = ("giantmidi_piano", "pop909")
SAMPLE_RATE = 16000


def main() -> None:
    """Score the model, and Basic Pitch if it is there, on every set that can be made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="onsets_frames.small")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--font", type=Path, default=FONT, help="a sound font never trained on")
    parser.add_argument("--minutes", type=float, default=15.0, help="of the held-out font")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    transcriber = musicjax.load(arguments.model)
    subjects: dict[str, Callable[[list[Example]], dict[str, float]]] = {
        "musicjax": lambda some: evaluate(transcriber, some)["mean"]
    }
    if importlib.util.find_spec("basic_pitch") is not None:
        peer = basic_pitch()
        subjects["basic_pitch"] = lambda some: _scored_by(peer, some)
    for name, pieces in _sets(arguments.shared, arguments.font, arguments.minutes):
        for subject, score in subjects.items():
            means = score(pieces)
            print(
                f"{name:12s} {subject:11s} {len(pieces):3d} pieces · onset F1 "
                f"{means['onset_f1']:.3f} (P {means['onset_precision']:.3f} R "
                f"{means['onset_recall']:.3f}) · onset+offset {means['onset_offset_f1']:.3f} · "
                f"frame {means['frame_f1']:.3f}"
            )
            if not arguments.dry_run:
                _record(name, subject, arguments.model, pieces, means)


def _sets(shared: Path, font: Path, minutes: float) -> Iterable[tuple[str, list[Example]]]:
    clips = sorted(shared.glob("clips/piano_*.flac"))
    if clips:
        dry = list(examples([str(shared / "clips" / "piano_*.flac")]))
        dry = [_resampled(example) for example in dry]
        yield "clips", dry
        yield "clips, rooms", [_in_a_room(e, i, s) for i, e in enumerate(dry) for s in range(3)]
    else:
        print(f"no piano clips below {shared}: left out")
    archives = tuple(str(shared / "midi" / f"{name}.tar.gz") for name in SCORES)
    if available() and font.is_file() and all(Path(a).is_file() for a in archives):
        with tempfile.TemporaryDirectory() as folder:
            render_corpus(
                RenderConfig(
                    out=Path(folder),
                    midi=archives,
                    weights=(1.0, 1.0),
                    split="test",
                    instruments=(str(font),),
                    programs=(0,),
                    hours=minutes / 60,
                    excerpt_s=30.0,
                    as_written=True,
                    reverb_chance=0.0,
                )
            )
            played = list(examples([folder]))
        yield "font", played
        yield "font, rooms", [_in_a_room(example, i, 0) for i, example in enumerate(played)]
    else:
        print(f"FluidSynth, {font} or the scores below {shared} are missing: left out")


def _resampled(example: Example) -> Example:
    import soxr

    samples = soxr.resample(to_float(example.samples), example.sample_rate, SAMPLE_RATE)
    return Example(example.id, SAMPLE_RATE, to_int16(samples), example.notes)


def _in_a_room(example: Example, index: int, seed: int) -> Example:
    rng = np.random.default_rng([0x400, index, seed])  # rooms of its own, the same every time
    samples, notes = augment(
        to_float(example.samples), example.notes, example.sample_rate, rng, AugmentConfig()
    )
    return Example(f"{example.id} in room {seed}", example.sample_rate, to_int16(samples), notes)


def _scored_by(transcribe: Callable[[Path], Any], pieces: list[Example]) -> dict[str, float]:
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for piece in pieces:
            path = Path(folder, "piece.wav")
            save_audio(path, to_float(piece.samples), piece.sample_rate)
            found = sorted(transcribe(path))
            onset, offset, pitch, level = (np.array([n[k] for n in found]) for k in range(4))
            velocity = np.clip(np.rint(127 * level), 1, 127)
            estimate = Notes.from_arrays(
                onset_s=onset, offset_s=offset, pitch=pitch, velocity=velocity
            )
            scores.append(note_scores(piece.notes.sustained(), estimate))
    return mean_scores(scores).as_dict()


def _record(
    name: str, subject: str, model: str, pieces: list[Example], means: dict[str, float]
) -> None:
    line = {
        "benchmark": "accuracy",
        "facts": {"set": name, "model": model if subject == "musicjax" else subject},
        "subject": subject,
        "pieces": len(pieces),
        "audio_s": round(sum(len(p.samples) / p.sample_rate for p in pieces), 1),
        "scores": {key: round(float(value), 4) for key, value in means.items()},
        **environment(),
    }
    with (RESULTS / "accuracy.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
