"""How late, how fast and how well a model hears sound as it comes.

    taskset -c 1 python benchmarks/streaming.py                        # what the zoo can stream
    python benchmarks/streaming.py --models piano_ar.small --minutes 2 --dry-run
    python benchmarks/streaming.py --sets clips "clips, rooms" font    # accuracy as well

A line a model for time: the algorithmic latency, which follows from the form; the time of a step,
of which there is one every hop (32 ms for piano, 10 ms for pitch), as median, 90th and 99th
percentile and worst, from the samples' arrival until the events are there; and how much the
resident memory grew between the first minute and the last (`--minutes`, an hour by default). Forms
without weights are timed with random ones, which takes as long.

A line a model and set (`accuracy.py` tells what the sets are) for accuracy, where there are
weights: scores of whole recordings, scores of the same sound in blocks of 480 samples, and in how
many pieces the notes were the same one for one.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import FONT, SETS, SHARED, sets
from flax import nnx
from harness import RESULTS, environment

from musicjax import registry
from musicjax.audio import Audio
from musicjax.data.records import Example, to_float
from musicjax.errors import MusicJaxError
from musicjax.hub import LoadedModel, load_model
from musicjax.infer import sample_blocks
from musicjax.infer.stream import Streamer, can_stream, events_to_notes
from musicjax.metrics import mean_scores, note_scores
from musicjax.notes import Notes
from musicjax.tasks.transcribe import Transcriber

BLOCK = 480
WARM_S = 60.0
PAGE_MB = resource.getpagesize() / 2**20


def main() -> None:
    """Time every model, and score those that write notes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", help="default: all tags of systems that can stream")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of sound for time and memory; 0: none"
    )
    parser.add_argument("--sets", nargs="*", default=(), choices=SETS)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--font", type=Path, default=FONT, help="a sound font never trained on")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    for name in arguments.models if arguments.models is not None else streaming_tags():
        loaded, trained = model_at_hand(name)
        lines = []
        if arguments.minutes:
            lines = [timed(name, loaded.model, arguments.minutes) | {"trained": trained}]
        if trained and loaded.system.task == "transcribe" and arguments.sets:
            pieces = sets(arguments.sets, arguments.shared, arguments.font, 15.0)
            lines += [scored(name, loaded, which, found) for which, found in pieces]
        for line in lines:
            print(json.dumps(line), flush=True)
            if not arguments.dry_run:
                record(line)


def streaming_tags() -> Iterator[str]:
    """Every tag of every system whose model can be heard live."""
    for system in registry.systems().values():
        if can_stream(system.resolve("model")):
            yield from (f"{system.name}.{tag}" for tag in system.cards)


def model_at_hand(name: str) -> tuple[LoadedModel, bool]:
    """A model, and whether its weights are trained: those that are not at hand are random."""
    try:
        return load_model(name), True
    except MusicJaxError:
        system, tag, card = registry.find_card(name)
        config = system.resolve("config")(tag)
        model = system.resolve("model")(config, rngs=nnx.Rngs(0))
        return LoadedModel(model, config, card, name, system), False


# Time ---------------------------------------------------------------------------------------------


def playing(spec: Any, count: int) -> Iterator[np.ndarray]:
    """Hops of something that changes: decaying tones over a little noise, the same every time."""
    rng = np.random.default_rng(0)
    seconds = np.arange(spec.hop) / spec.sample_rate
    struck_s, hz = -1.0, 440.0
    for step in range(count):
        now_s = step * spec.hop / spec.sample_rate
        if now_s - struck_s > 0.4:
            struck_s, hz = now_s, float(rng.uniform(80, 1200))
        since_s = now_s - struck_s + seconds
        tone = 0.3 * np.exp(-4 * since_s) * np.sin(2 * np.pi * hz * since_s)
        yield (tone + 0.001 * rng.normal(size=spec.hop)).astype(np.float32)


def timed(name: str, model: nnx.Module, minutes: float) -> dict[str, Any]:
    """Latency, time of a step, growth."""
    begun = time.perf_counter()
    streamer = Streamer(model)
    start_s = time.perf_counter() - begun
    spec, warm_mb = streamer.spec, 0.0
    count = round(minutes * 60 * spec.sample_rate / spec.hop)
    times = np.full(count, np.nan)  # all of it now: a list would grow beside the model
    for step, hop in enumerate(playing(spec, count)):
        begun = time.perf_counter()
        streamer.feed(hop)
        times[step] = time.perf_counter() - begun
        if not warm_mb and streamer.time_s >= min(WARM_S, 30 * minutes):
            warm_mb = resident_mb()
    grown_mb = resident_mb() - warm_mb
    steps = 1e3 * times[spec.delay :]  # before, there is no result to wait for
    at = {f"p{q}": float(np.percentile(steps, q)) for q in (50, 90, 99)}
    return {
        "benchmark": "streaming",
        "facts": {"what": "step", "model": name, "minutes": minutes},
        "subject": "musicjax",
        "latency_ms": 1e3 * spec.latency_s,
        "hop_ms": 1e3 * spec.hop / spec.sample_rate,
        "step_ms": at | {"worst": float(steps.max()), "mean": float(steps.mean())},
        "late_steps": int((steps > 1e3 * spec.hop / spec.sample_rate).sum()),
        "start_s": start_s,
        "programs": streamer.programs,
        "memory_mb": {"after_a_minute": warm_mb, "growth": grown_mb},
    }


def resident_mb() -> float:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MB


# Accuracy -----------------------------------------------------------------------------------------


def scored(name: str, loaded: LoadedModel, which: str, pieces: list[Example]) -> dict[str, Any]:
    """Scores of whole recordings and of the same sound in blocks."""
    transcriber, streamer = Transcriber(loaded), Streamer(loaded.model)
    scores: dict[str, list] = {"offline": [], "streaming": []}
    same = 0
    for piece in pieces:
        audio = Audio(to_float(piece.samples), piece.sample_rate)
        truth = piece.notes.sustained()
        whole = transcriber.transcribe(audio).notes
        live = streamed(streamer, audio)
        same += whole == live
        for kind, notes in (("offline", whole), ("streaming", live)):
            scores[kind].append(note_scores(truth, notes.sustained()))
    means = {kind: mean_scores(found).as_dict() for kind, found in scores.items()}
    return {
        "benchmark": "streaming",
        "facts": {"what": "notes", "model": name, "set": which},
        "subject": "musicjax",
        "latency_ms": 1e3 * streamer.spec.latency_s,
        "pieces": len(pieces),
        "same_notes": same,
        "scores": {
            kind: {key: round(float(value), 4) for key, value in found.items()}
            for kind, found in means.items()
        },
    }


def streamed(streamer: Streamer, audio: Audio) -> Notes:
    """The notes of a recording that comes in blocks."""
    streamer.reset()
    events = []
    for block in cut(sample_blocks(audio, streamer.spec.sample_rate)):
        events += streamer.feed(block)
    return events_to_notes(events + streamer.finish())


def cut(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Small blocks of large ones."""
    for block in blocks:
        yield from np.split(block, range(BLOCK, len(block), BLOCK))


def record(line: dict[str, Any]) -> None:
    """One line more in the results."""
    with (RESULTS / "streaming.jsonl").open("a") as file:
        file.write(json.dumps({**line, **environment()}) + "\n")


if __name__ == "__main__":
    main()
