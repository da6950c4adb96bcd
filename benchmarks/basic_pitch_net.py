"""Basic Pitch against onnxruntime and the authors' package: the network, and a file to its notes.

    python benchmarks/basic_pitch_net.py --weights nmp.onnx     # the authors' file
    python benchmarks/basic_pitch_net.py                        # or through the package index

Both sides get the same weights, and the same windows in the same batches, and are checked to give
the same before the clock starts: posteriors to 2e-4, and in the second case the same notes. Needs
`pip install onnxruntime`; the second case also `pip install --no-deps basic-pitch resampy`. The
constant-Q transform is inside the clock on both sides. On a machine that does other work, set
OMP_WAIT_POLICY=PASSIVE.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from harness import Case, Subject, compare

from musicjax.audio import load_audio
from musicjax.hub.weights import LoadedModel, load_model
from musicjax.models.basic_pitch.convert import convert
from musicjax.registry import find_card
from musicjax.tasks.transcribe import Transcriber

NAME = "basic_pitch.icassp2022"
EXAMPLE = Path(__file__).parent.parent / "examples" / "bach_prelude.flac"
OUTPUTS = {"contour": ":0", "note": ":1", "onset": ":2"}  # StatefulPartitionedCall
TOLERANCE = 2e-4


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="the authors' nmp.onnx")
    parser.add_argument("--windows", type=int, default=18, help="windows in a batch")
    parser.add_argument("--recording", type=Path, default=EXAMPLE)
    parser.add_argument("--cases", nargs="+", default=["network", "notes"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    if importlib.util.find_spec("onnxruntime") is None:
        raise SystemExit("this benchmark needs its peer: pip install onnxruntime")
    loaded, weights = model_and_file(arguments.weights)
    options = {"min_repeats": arguments.repeats, "record": not arguments.dry_run}
    if "network" in arguments.cases:
        network(loaded, weights, arguments.windows, options)
    if "notes" in arguments.cases:
        notes(loaded, weights, arguments.recording, options)


def model_and_file(weights: Path | None) -> tuple[LoadedModel, Path]:
    """The model, and the ONNX file that it comes from."""
    from musicjax.hub.download import fetch

    system, _, card = find_card(NAME)
    if weights is None:
        return load_model(NAME), fetch(card.source, system=system.name)
    model, config = convert(weights)
    return LoadedModel(model, config, card, NAME, system), weights


def network(loaded: LoadedModel, weights: Path, windows: int, options: dict[str, Any]) -> None:
    """Samples to posteriors, one batch of windows."""
    import onnxruntime

    config = loaded.config
    audio = load_audio(EXAMPLE, config.frontend.sample_rate).samples
    size = config.window_samples
    starts = np.linspace(0, len(audio) - size, windows).astype(int)
    batch = np.stack([audio[start : start + size] for start in starts])
    graph, state = nnx.split(loaded.model)
    ours = jax.jit(lambda state, audio: nnx.merge(graph, state).activations(audio))
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    names = [f"StatefulPartitionedCall{suffix}" for suffix in OUTPUTS.values()]
    feed = {session.get_inputs()[0].name: batch[..., None]}

    def theirs() -> list[np.ndarray]:
        return session.run(names, feed)

    heard = ours(state, batch)
    for name, expected in zip(OUTPUTS, theirs(), strict=True):
        gap = float(np.abs(np.asarray(heard[name]) - expected).max())
        print(f"{name}: largest difference {gap:.1e}")
        if gap > TOLERANCE:
            raise SystemExit(f"{name} differs by {gap:.1e}; both sides should be the same.")
    audio_s = windows * windowing_s(loaded)
    case = Case("basic_pitch", audio_s, batch=windows, facts={"case": "network"})
    subjects = [
        Subject("musicjax", ours, (state, batch)),
        Subject("onnxruntime", theirs, wait=lambda _: None),
    ]
    compare(case, subjects, **options)


def windowing_s(loaded: LoadedModel) -> float:
    """Seconds of a recording that a window brings on; the rest of it overlaps."""
    model: Any = loaded.model
    return model.windowing.stride / loaded.config.frontend.sample_rate


def notes(loaded: LoadedModel, weights: Path, recording: Path, options: dict[str, Any]) -> None:
    """A file in, notes out."""
    if importlib.util.find_spec("basic_pitch") is None:
        print("basic_pitch is not installed: the case 'notes' is left out")
        return
    transcriber = Transcriber(loaded)
    theirs = package(weights)
    result, peers = transcriber.transcribe(recording), theirs(recording)
    expected = {(round(on, 2), pitch) for on, _, pitch, *_ in peers}
    got = {(round(float(on), 2), int(p)) for on, p in zip(result.notes.onset_s, result.notes.pitch)}  # noqa: B905
    print(f"{len(result.notes)} notes and {len(peers)}, {len(got & expected)} the same")
    case = Case("basic_pitch", result.duration_s, facts={"case": "notes", "file": recording.name})
    subjects = [
        Subject("musicjax", transcriber.transcribe, (recording,), wait=lambda _: None),
        Subject("basic_pitch", theirs, (recording,), wait=lambda _: None),
    ]
    compare(case, subjects, **options)


def package(weights: Path) -> Callable[[Path], list]:
    """The authors' own way from a file to notes, through ONNX, without its prints."""
    logging.disable(logging.WARNING)
    from basic_pitch.inference import Model, predict

    model = Model(weights)

    def transcribe(path: Path) -> list:
        with contextlib.redirect_stdout(io.StringIO()):
            return predict(path, model)[2]

    return transcribe


if __name__ == "__main__":
    main()
