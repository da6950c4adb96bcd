"""Transkun's notes and speed beside those of the authors' package, on the same weights.

    python benchmarks/transkun_v2.py ../shared/data/clips/piano_*.flac
    python benchmarks/transkun_v2.py --repeats 0 CLIP.flac    # notes only, without the stopwatch
    python benchmarks/transkun_v2.py --repeats 0 --long 60 CLIP.flac    # and an hour's memory

Both get the samples of each clip at 44.1 kHz, from memory, and give notes; loading the models is
outside the clock. What the package finds is compared with ours first: a note is the same when its
key is, both ends lie within a millisecond and its velocity within 1. Where the true notes lie
beside a clip (CLIP.mid) both are scored as well. What ours says of the silence behind a clip's end
is known before the clock starts, as for any recording but the first.

`--mlp-products auto` rounds the MLPs' operands where the processor has matrix units for bfloat16;
`--long MINUTES` repeats the first clip in a file and tells how much memory the process took.

The package is left out when it is not installed: `pip install --no-deps transkun==2.0.1`, with
torch, pretty_midi and, for its filterbank, torchaudio. `--notes FOLDER` keeps its notes as
FOLDER/CLIP.npz and, where they lie there already, compares with those and does not run it: the
package may take many times as long as the clip.
"""

import argparse
import importlib.util
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import soundfile
from harness import RESULTS, Case, Subject, compare, environment

from musicjax.audio import Audio, load_audio
from musicjax.hub import load_model
from musicjax.infer import keep_compiled
from musicjax.infer.bench import peak_rss_mb
from musicjax.metrics import note_scores
from musicjax.notes import Notes, Pedal, read_midi
from musicjax.tasks.transcribe import Transcriber
from musicjax.types import Policy

RATE = 44_100
TIME_S, VELOCITY = 1e-3, 1  # how far two notes that are the same may be apart
Result = TypeVar("Result")
LEAST_SAME, MOST_F1 = 0.995, 0.002
SCORES = ("onset_f1", "onset_offset_f1", "onset_offset_velocity_f1")


def main() -> None:
    """Compare and measure on every clip; exit with a sentence where notes differ too much."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="transkun.v2")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--mlp-products", default="float32", choices=("float32", "auto"))
    parser.add_argument("--long", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--notes", type=Path, help="folder with the package's notes")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    transcriber = load(arguments.model, arguments.dtype, arguments.mlp_products)
    products = {"dtype": arguments.dtype, "mlp_products": arguments.mlp_products}
    installed = importlib.util.find_spec("transkun") is not None
    package = by_package() if installed else None
    if package is None:
        print("transkun is not installed: left out")
    failures, same = [], []
    for clip in arguments.clips:
        audio = load_audio(clip, RATE, mono=False)
        theirs = their_notes(clip, audio, package, arguments.notes)
        transcriber.transcribe(Audio(audio.samples[..., :RATE], RATE))  # compiled before the clock
        ours, cpu_s, wall_s = clocked(lambda audio=audio: transcriber.transcribe(audio).notes)
        facts: dict[str, Any] = {"clip": clip.stem, "model": arguments.model}
        line = {"notes": len(ours), "cpu_s": cpu_s, "wall_s": wall_s}
        truth = read_midi(clip.with_suffix(".mid")) if clip.with_suffix(".mid").exists() else None
        line |= scored(truth, ours, "")
        if theirs is not None:
            line |= compared(ours, theirs[0]) | {"package_cpu_s": theirs[1]}
            line |= scored(truth, theirs[0], "package_")
            gap = max(
                (abs(line[name] - line[f"package_{name}"]) for name in SCORES if name in line),
                default=0.0,
            )
            same.append((line["same"], len(theirs[0])))
            if line["same"] < LEAST_SAME or gap > MOST_F1:
                failures.append(
                    f"{clip.stem}: {line['same']:.2%} the same, F1 differs by {gap:.4f}"
                )
        print(clip.stem, json.dumps(line))
        if not arguments.dry_run:
            record(facts | products, audio.duration_s, line)
        if arguments.repeats:
            subjects = [
                Subject("musicjax", transcriber.transcribe, (audio,), wait=jax.block_until_ready)
            ]
            if package is not None:
                subjects.append(Subject("transkun", package, (audio,)))
            facts |= {"mlp_products": arguments.mlp_products}
            case = Case("transkun", audio.duration_s, dtype=arguments.dtype, facts=facts)
            compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)
    if same:
        share = sum(part * count for part, count in same) / max(sum(count for _, count in same), 1)
        print(f"{share:.2%} of the notes of {len(same)} clips are the same")
    if arguments.long:
        line = of_long_recording(transcriber, arguments.clips[0], arguments.long)
        print(json.dumps(line))
        if not arguments.dry_run:
            record({"model": arguments.model} | products, 60 * arguments.long, line, "memory")
    if failures:
        raise SystemExit("the notes are not the package's: " + "; ".join(failures))


def load(name: str, dtype: str, mlp_products: str) -> Transcriber:
    """The transcriber whose products are taken so."""
    keep_compiled()
    loaded = load_model(name, policy=Policy(dtype=dtype))
    config = replace(loaded.config, mlp_products=mlp_products)
    for layer in loaded.model.layers:
        layer.rounded_on_cpu = config.mlp_rounded_on_cpu
    return Transcriber(loaded)


def of_long_recording(transcriber: Transcriber, clip: Path, minutes: float) -> dict[str, Any]:
    """Peak memory of the process on a clip, and then on a file of so many minutes of it."""
    audio = load_audio(clip, RATE)
    transcriber.transcribe(audio)
    short_mb = peak_rss_mb()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        times = math.ceil(60 * minutes / audio.duration_s)
        with soundfile.SoundFile(path, "w", RATE, channels=1) as file:
            for _ in range(times):
                file.write(audio.samples.reshape(-1))
        result, cpu_s, wall_s = clocked(lambda: transcriber.transcribe(path))
    line = {"notes": len(result.notes), "cpu_s": cpu_s, "wall_s": wall_s}
    return line | {"clip_peak_rss_mb": short_mb, "long_peak_rss_mb": peak_rss_mb()}


def by_package() -> Callable[[Audio], np.ndarray]:
    """The package with its own weights, without its reading and writing of files."""
    import torch
    import transkun
    from transkun.ModelTransformer import ModelConfig, TransKun

    folder = Path(transkun.__file__).parent / "pretrained"
    config = ModelConfig()
    settings = json.loads((folder / "2.0.conf").read_text())["Model"]["config"]
    for name, value in settings.items():
        setattr(config, name, value)
    network = TransKun(config).eval()
    weights = torch.load(folder / "2.0.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(weights["state_dict"], strict=False)

    def transcribe(audio: Audio) -> np.ndarray:
        channels = np.atleast_2d(audio.samples).T
        with torch.inference_mode():
            found = network.transcribe(torch.from_numpy(np.ascontiguousarray(channels)))
        return np.array([(e.start, e.end, e.pitch, e.velocity) for e in found])

    return transcribe


def as_notes(rows: np.ndarray) -> Notes:
    """Notes from rows of onset, offset, number and velocity; negative numbers are pedals."""
    onset_s, offset_s, number, velocity = rows.reshape(-1, 4).T
    key, pedal = number > 0, number < 0
    moves = Pedal.from_arrays(
        np.concatenate([onset_s[pedal], offset_s[pedal]]),
        np.concatenate([velocity[pedal], 0 * velocity[pedal]]),
        np.tile(-number[pedal], 2),
    )
    return Notes.from_arrays(
        onset_s[key], offset_s[key], number[key], np.maximum(velocity[key], 1), pedal=moves
    )


def their_notes(
    clip: Path, audio: Audio, package: Callable[[Audio], np.ndarray] | None, folder: Path | None
) -> tuple[Notes, float] | None:
    """What the package hears, and its seconds of processor time; None where there is neither."""
    kept = None if folder is None else folder / f"{clip.stem}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return as_notes(file["notes"]), float(file["cpu"])
    if package is None:
        return None
    rows, cpu_s, _ = clocked(lambda: package(audio))
    if kept is not None:
        np.savez(kept, notes=rows, cpu=cpu_s)
    return as_notes(rows), cpu_s


def clocked(function: Callable[[], Result]) -> tuple[Result, float, float]:
    """What it gives, and the seconds that all threads together and that a person waited for it."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - cpu_s, time.perf_counter() - wall_s


def compared(ours: Notes, theirs: Notes) -> dict[str, Any]:
    """Share of notes that are the same, and how far apart those are at most."""
    free = np.ones(len(ours), bool)
    pairs = []
    for k in range(len(theirs)):
        near = free & (ours.pitch == theirs.pitch[k])
        near &= np.abs(ours.onset_s - theirs.onset_s[k]) <= TIME_S
        near &= np.abs(ours.offset_s - theirs.offset_s[k]) <= TIME_S
        near &= np.abs(ours.velocity.astype(int) - int(theirs.velocity[k])) <= VELOCITY
        if near.any():
            pairs.append((int(np.argmax(near)), k))
            free[pairs[-1][0]] = False
    mine, other = np.array(pairs, int).reshape(-1, 2).T
    apart = np.abs(
        [ours.onset_s[mine] - theirs.onset_s[other], ours.offset_s[mine] - theirs.offset_s[other]]
    )
    velocity = ours.velocity[mine].astype(int) == theirs.velocity[other]
    return {
        "package_notes": len(theirs),
        "same": len(pairs) / max(len(ours), len(theirs), 1),
        "same_velocity": float(velocity.mean()) if len(pairs) else 1.0,
        "most_apart_s": float(apart.max(initial=0.0)),
        "pedal_moves": 0 if ours.pedal is None else len(ours.pedal.time_s),
        "package_pedal_moves": 0 if theirs.pedal is None else len(theirs.pedal.time_s),
    }


def scored(truth: Notes | None, found: Notes, prefix: str) -> dict[str, float]:
    """F1 against the true notes, which end where their keys are released."""
    if truth is None:
        return {}
    scores = note_scores(truth, found).as_dict()
    return {prefix + name: round(float(scores[name]), 4) for name in SCORES}


def record(
    facts: dict[str, Any], audio_s: float, line: dict[str, Any], subject: str = "notes"
) -> None:
    """Append one comparison to the results."""
    whole = {"benchmark": "transkun", "subject": subject, "facts": facts, "audio_s": audio_s}
    with (RESULTS / "transkun.jsonl").open("a") as file:
        file.write(json.dumps({**whole, **line, **environment()}) + "\n")


if __name__ == "__main__":
    main()
