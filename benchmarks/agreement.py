"""Do the segments of a recording keep faith with each other? Each alone, and together.

    python benchmarks/agreement.py mt3.mt3                      # clips of ensembles
    python benchmarks/agreement.py runs/mine/best.safetensors --data data/ensemble/test --dry-run
    python benchmarks/agreement.py mt3.mini --beside basic_pitch.icassp2022 onsets_frames.small

A model that writes two seconds at a time may call one instrument by several names. The same
recordings are transcribed with `together=False`, as published, and with `together=True`; or, with
`--sweep`, with several weights of what the recording as a whole says. Told are, over all pieces:

switches        how often the heard instrument changes along the notes of a real one, a minute
onset_program   F1 of onset, pitch and instrument; onset_offset_program: with offsets, too
onset           F1 of onset and pitch, whoever plays
invalid         share of tokens that made no sense
revised         share of segments that were written a second time
seconds         of processor time for a minute of sound

Data are folders of records, or of recordings with notes beside them; by default the clips of a
band, a song, a quartet and drums that lie beside the project, where they are.

With `--beside`, recordings whose notes nobody knows: how far the model and others, which were made
in other ways, hear the same. Told for each pair is the F1 of onset and pitch of one against the
other, and how many notes each hears. By default an orchestra's strings and a band, recorded, beside
the project; `--data` then names sound files.
"""

import argparse
import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, environment

import musicjax
from musicjax.data.pipeline import examples
from musicjax.data.records import Example
from musicjax.infer import AgreeingRunner
from musicjax.metrics import instrument_scores, mean_scores, note_scores
from musicjax.metrics.instruments import count_program_switches
from musicjax.notes.agreement import AgreementConfig

CLIPS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "clips"
ENSEMBLES = ("band_1", "lied_1", "quartet_1", "drums_1")
RECORDED = ("mix_hungarian_dance5_strings", "mix_vibe_ace")
SWEEP = (
    AgreementConfig(prior=0.0),
    AgreementConfig(prior=0.5),
    AgreementConfig(prior=1.0, ties=False),
    AgreementConfig(prior=1.0),
    AgreementConfig(prior=2.0, most=8.0),
)


@dataclass(frozen=True)
class Found:
    """What one way of hearing gave, means or sums over all pieces."""

    switches_a_minute: float
    onset_program_f1: float
    onset_offset_program_f1: float
    onset_f1: float
    invalid: float
    revised: float
    seconds_a_minute: float


def main() -> None:
    """Score each way on all pieces."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a name or a .safetensors file")
    parser.add_argument("--data", nargs="+", help="folders (default: the shared clips)")
    parser.add_argument("--beside", nargs="+", help="other models, on recordings without notes")
    parser.add_argument("--slots", type=int, help="segments written at once")
    parser.add_argument("--sweep", action="store_true", help="several weights of the recording")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    if arguments.beside:
        files = arguments.data or [str(CLIPS / f"{name}.flac") for name in RECORDED]
        compare([arguments.model, *arguments.beside], files, arguments.dry_run)
        return
    ways: list[bool | AgreementConfig] = [False, *(SWEEP if arguments.sweep else (True,))]
    data = arguments.data or [str(CLIPS / f"{name}.flac") for name in ENSEMBLES]
    rate = musicjax.load(arguments.model).sample_rate
    pieces = list(examples(data, rate))
    for way in ways:
        found = heard(arguments.model, pieces, way, arguments.slots)
        print(f"{'alone' if way is False else f'together {way}'}: {found}", flush=True)
        if not arguments.dry_run:
            record(arguments.model, data, pieces, way, found)


def heard(
    model: str, pieces: list[Example], way: bool | AgreementConfig, slots: int | None
) -> Found:
    """Transcribe all pieces in one way."""
    transcriber = musicjax.load(model, together=way, batch_size=slots)
    begun = time.process_time()
    results = [transcriber.transcribe(piece.samples, piece.sample_rate) for piece in pieces]
    took_s = time.process_time() - begun
    minutes = sum(len(p.samples) / p.sample_rate for p in pieces) / 60
    truth = [piece.notes.sustained() for piece in pieces]
    pairs = list(zip(truth, (result.notes for result in results), strict=True))
    by_program = mean_scores(instrument_scores(*pair) for pair in pairs)
    switches = sum(count_program_switches(*pair)[0] for pair in pairs)
    written = sum(int(np.count_nonzero(result.activations["tokens"])) for result in results)
    segments = sum(len(result.activations["tokens"]) for result in results)
    runner = transcriber.runner
    revised = runner.revised_in_all if isinstance(runner, AgreeingRunner) else 0
    return Found(
        switches_a_minute=round(switches / minutes, 3),
        onset_program_f1=round(by_program.onset_program_f1, 4),
        onset_offset_program_f1=round(by_program.onset_offset_program_f1, 4),
        onset_f1=round(mean_scores(note_scores(*pair) for pair in pairs).onset_f1, 4),
        invalid=round(sum(r.report.invalid for r in results if r.report) / max(written, 1), 5),
        revised=round(revised / max(segments, 1), 4),
        seconds_a_minute=round(took_s / minutes, 2),
    )


def compare(models: list[str], files: list[str], dry_run: bool) -> None:
    """How far each two of the models hear the same in each of the files, and in how many notes."""
    heard = {
        model: [transcriber.transcribe(file).notes.sustained() for file in files]
        for model in models
        for transcriber in [musicjax.load(model)]
    }
    for n, file in enumerate(files):
        notes = {model: found[n][~found[n].is_drum] for model, found in heard.items()}
        pairs = {
            f"{a} / {b}": round(note_scores(notes[a], notes[b]).onset_f1, 4)
            for a, b in combinations(models, 2)
        }
        counts = {model: len(found) for model, found in notes.items()}
        print(f"{Path(file).stem}: {counts} {pairs}", flush=True)
        if not dry_run:
            write(
                {
                    "benchmark": "agreement",
                    "facts": {"beside": models, "data": [Path(file).name]},
                    "notes": counts,
                    "onset_f1": pairs,
                }
            )


def record(
    model: str, data: list[str], pieces: list[Example], way: bool | AgreementConfig, found: Found
) -> None:
    """Append one line to the results."""
    facts: dict[str, Any] = {"together": way if isinstance(way, bool) else vars(way)}
    line = {
        "benchmark": "agreement",
        "facts": {"model": Path(model).name, "data": [Path(d).name for d in data], **facts},
        "pieces": len(pieces),
        "audio_s": round(sum(len(p.samples) / p.sample_rate for p in pieces), 1),
        "scores": vars(found),
    }
    write(line)


def write(line: dict[str, Any]) -> None:
    """One line more in the results."""
    with (RESULTS / "agreement.jsonl").open("a") as file:
        file.write(json.dumps({**line, **environment()}) + "\n")


if __name__ == "__main__":
    main()
