"""How well notes are heard: every transcriber at hand and the packages that some come from.

    python benchmarks/accuracy.py                          # all models at hand, all sets
    python benchmarks/accuracy.py --models transkun.v2 --peers transkun --sets clips ensembles
    python benchmarks/accuracy.py --models runs/mine/best.safetensors --dry-run
    python benchmarks/accuracy.py --models mt3.mini --sets ensembles "bands, font" --each --dry-run

Six sets, each a mean over pieces of mir_eval's note scores (onset within 50 ms; a note lasts until
the pedal lets go, in truth and estimate alike; instruments are not told apart, drums left out).
Where there are several instruments, a second line tells the scores by program and by family of
programs, and drums over the pieces that have some. `--each` adds the lines of every piece.

    clips          piano clips with exact notes beside the project (a sampled Yamaha C5, dry)
    clips, rooms   the same in simulated rooms, with noise, colour and detuning
    ensembles      clips of a string quartet, a song with piano and a band with drums
    font           test split of the scores, played as written by a sound font never trained on
                   (but mt3.mini was, on most of its samples: give it OPL-3 with --font)
    font, rooms    the same in rooms
    bands, font    the test split given to random bands with drums, played by that same sound font
                   (the ensembles are played by FluidR3, which mt3.mini was trained on)

Clips keep their 44.1 kHz, so that no model hears less than it can use; the sound font is played at
16 kHz. Sets whose material is absent are left out, with a line that says so, and so are models that
would have to be fetched, unless they are named. Peers get the same sound when they are installed:
`pip install --no-deps basic-pitch resampy onnxruntime flatbuffers`, and for transkun what
`transkun_v2.py` says; `--notes FOLDER` takes the notes of that package which `transkun_v2.py` kept
there, since it may take many times as long as the clip.
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
from musicjax.audio import Audio, save_audio
from musicjax.data.augment import AugmentConfig, augment
from musicjax.data.fluidsynth import available
from musicjax.data.pipeline import examples
from musicjax.data.records import Example, to_float, to_int16
from musicjax.data.render import RenderConfig, render_corpus
from musicjax.metrics import mean_scores, note_scores
from musicjax.notes import Notes
from musicjax.tasks.choice import at_hand
from musicjax.tasks.transcribe import evaluate

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
SCORES = ("giantmidi_piano", "pop909")
BAND_SCORES = ("openscore_quartets", "openscore_lieder", "pop909")
GROOVES = "groove"
SETS = ("clips", "clips, rooms", "ensembles", "font", "font, rooms", "bands, font")
CLIP_RATE = 44_100
ENSEMBLES = ("band_1", "lied_1", "quartet_1")

Pieces = list[Example]
Found = dict[str, Any]  # "mean" and "each" of `musicjax.tasks.transcribe.evaluate`


def main() -> None:
    """Score the models, and their packages where they are there, on every set that can be made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", help="default: all that need no download")
    parser.add_argument("--peers", nargs="*", default=tuple(PEERS), choices=tuple(PEERS))
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--font", type=Path, default=FONT, help="a sound font never trained on")
    parser.add_argument("--notes", type=Path, help="folder with notes of the package transkun")
    parser.add_argument("--minutes", type=float, default=15.0, help="of the held-out font")
    parser.add_argument("--each", action="store_true", help="print every piece, too")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    models = at_hand("transcribe") if arguments.models is None else arguments.models
    subjects: dict[tuple[str, str], Callable[[Pieces], Found]] = {}
    for model in models:
        subjects["musicjax", model] = _by_musicjax(model)
    for peer in arguments.peers:
        if peer == "transkun" and arguments.notes is not None:
            subjects[peer, peer] = _by_package(_kept(arguments.notes))
        elif importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed: left out")
        else:
            subjects[peer, peer] = _by_package(PEERS[peer]())
    for name, pieces in sets(arguments.sets, arguments.shared, arguments.font, arguments.minutes):
        for (subject, model), score in subjects.items():
            found = score(pieces)
            head = f"{name:12s} {subject:11s} {model:26s}"
            for piece, scores in found["each"].items() if arguments.each else ():
                _print(f"{head} {piece}", scores)
            _print(f"{head} {len(pieces):3d} pieces", found["mean"])
            if not arguments.dry_run:
                _record(name, subject, model, pieces, found["mean"])


def _print(head: str, scores: dict[str, float]) -> None:
    told = (
        f"onset F1 {scores['onset_f1']:.3f} (P {scores['onset_precision']:.3f} R "
        f"{scores['onset_recall']:.3f}) · onset+offset {scores['onset_offset_f1']:.3f} · "
        f"frame {scores['frame_f1']:.3f}"
    )
    print(f"{head} · {told}", flush=True)
    if "onset_family_f1" in scores:
        drums = scores.get("drum_onset_f1")
        told = (
            f"onset F1 and family {scores['onset_family_f1']:.3f}, and program "
            f"{scores['onset_program_f1']:.3f} · onset+offset and family "
            f"{scores['onset_offset_family_f1']:.3f}, and program "
            f"{scores['onset_offset_program_f1']:.3f}"
            + (f" · drums {drums:.3f}" if drums is not None else "")
        )
        print(f"{'by instrument':>40s} · {told}", flush=True)


# Subjects -------------------------------------------------------------------------------------


def _by_musicjax(model: str) -> Callable[[Pieces], Found]:
    transcriber = musicjax.load(model)
    return lambda pieces: evaluate(transcriber, pieces)


def _by_package(transcribe: Callable[[Example], Notes]) -> Callable[[Pieces], Found]:
    def score(pieces: Pieces) -> Found:
        found = [note_scores(p.notes.sustained(), transcribe(p).sustained()) for p in pieces]
        each = {p.id: scores.as_dict() for p, scores in zip(pieces, found, strict=True)}
        return {"mean": mean_scores(found).as_dict(), "each": each}

    return score


def _basic_pitch() -> Callable[[Example], Notes]:
    predict = basic_pitch()

    def transcribe(piece: Example) -> Notes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "piece.wav")
            save_audio(path, to_float(piece.samples), piece.sample_rate)
            found = sorted(predict(path))
        onset, offset, pitch, level = (np.array([n[k] for n in found]) for k in range(4))
        velocity = np.clip(np.rint(127 * level), 1, 127)
        return Notes.from_arrays(onset_s=onset, offset_s=offset, pitch=pitch, velocity=velocity)

    return transcribe


def _transkun() -> Callable[[Example], Notes]:
    from transkun_v2 import as_notes, by_package

    package = by_package()

    def transcribe(piece: Example) -> Notes:
        import soxr

        samples = soxr.resample(to_float(piece.samples), piece.sample_rate, CLIP_RATE)
        return as_notes(package(Audio(samples, CLIP_RATE)))

    return transcribe


def _kept(folder: Path) -> Callable[[Example], Notes]:
    from transkun_v2 import as_notes

    def read(piece: Example) -> Notes:
        with np.load(folder / f"{piece.id}.npz") as file:
            return as_notes(file["notes"])

    return read


PEERS: dict[str, Callable[[], Callable[[Example], Notes]]] = {
    "basic_pitch": _basic_pitch,
    "transkun": _transkun,
}

# Sets -----------------------------------------------------------------------------------------


def sets(
    wanted: Iterable[str], shared: Path, font: Path, minutes: float
) -> Iterable[tuple[str, Pieces]]:
    if {"clips", "clips, rooms"} & {*wanted}:
        dry = _clips(shared, sorted(p.stem for p in shared.glob("clips/piano_*.flac")))
        rooms = [_in_a_room(example, i, seed) for i, example in enumerate(dry) for seed in range(3)]
        yield from _given({"clips": dry, "clips, rooms": rooms}, wanted)
    if "ensembles" in wanted:
        yield from _given({"ensembles": _clips(shared, ENSEMBLES)}, wanted)
    if {"font", "font, rooms"} & {*wanted}:
        played = _played(shared, font, minutes)
        rooms = [_in_a_room(example, i, 0) for i, example in enumerate(played)]
        yield from _given({"font": played, "font, rooms": rooms}, wanted)
    if "bands, font" in wanted:
        yield from _given({"bands, font": _bands(shared, font, minutes)}, wanted)


def _given(sets: dict[str, Pieces], wanted: Iterable[str]) -> Iterable[tuple[str, Pieces]]:
    for name, pieces in sets.items():
        if name in wanted and pieces:
            yield name, pieces


def _clips(shared: Path, names: Iterable[str]) -> Pieces:
    paths = [shared / "clips" / f"{name}.flac" for name in names]
    there = [path for path in paths if path.is_file()]
    if not there:
        print(f"the clips below {shared} are missing: left out")
    return [piece for path in there for piece in examples([str(path)], CLIP_RATE)]


def _played(shared: Path, font: Path, minutes: float) -> Pieces:
    return _rendered(shared, font, minutes, SCORES, programs=(0,))


def _bands(shared: Path, font: Path, minutes: float) -> Pieces:
    drums = _archives(shared, (GROOVES,))
    return _rendered(shared, font, minutes, BAND_SCORES, ensemble=True, drums=drums)


def _archives(shared: Path, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(shared / "midi" / f"{name}.tar.gz") for name in names)


def _rendered(
    shared: Path,
    font: Path,
    minutes: float,
    scores: tuple[str, ...],
    drums: tuple[str, ...] = (),
    **how: Any,
) -> Pieces:
    archives = _archives(shared, scores)
    there = all(Path(archive).is_file() for archive in (*archives, *drums))
    if not (available() and font.is_file() and there):
        print(f"FluidSynth, {font} or the scores below {shared} are missing: left out")
        return []
    with tempfile.TemporaryDirectory() as folder:
        render_corpus(
            RenderConfig(
                out=Path(folder),
                midi=archives,
                weights=(1.0,) * len(archives),
                drums=drums,
                split="test",
                instruments=(str(font),),
                hours=minutes / 60,
                excerpt_s=30.0,
                as_written=True,
                reverb_chance=0.0,
                **how,
            )
        )
        return list(examples([folder]))


def _in_a_room(example: Example, index: int, seed: int) -> Example:
    rng = np.random.default_rng([0x400, index, seed])  # rooms of its own, the same every time
    samples, notes = augment(
        to_float(example.samples), example.notes, example.sample_rate, rng, AugmentConfig()
    )
    return Example(f"{example.id} in room {seed}", example.sample_rate, to_int16(samples), notes)


def _record(name: str, subject: str, model: str, pieces: Pieces, means: dict[str, float]) -> None:
    line = {
        "benchmark": "accuracy",
        "facts": {"set": name, "model": model},
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
