"""A file in, notes out: how much faster than real time, against Basic Pitch.

    python benchmarks/transcribe.py                        # the shipped example and five minutes
    python benchmarks/transcribe.py --model runs/mine/final.safetensors --dry-run

Reading, resampling, spectrogram, network and decoding are all inside the clock; loading the model
is not. Basic Pitch (Spotify, 2022: any instrument, a smaller network) is the peer when it is
installed: `pip install --no-deps basic-pitch resampy onnxruntime flatbuffers`.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from command_line import ROOT, recording
from harness import Case, Subject, compare

import musicjax
from musicjax.audio import probe

MINUTES_5 = 300.0


def main() -> None:
    """Measure both recordings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="onsets_frames.small")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    transcriber = musicjax.load(arguments.model)
    functions = {"musicjax": transcriber.transcribe}
    if importlib.util.find_spec("basic_pitch") is None:
        print("basic_pitch is not installed: left out")
    else:
        functions["basic_pitch"] = basic_pitch()

    with tempfile.TemporaryDirectory() as folder:
        example = ROOT / "examples" / "bach_prelude.flac"
        five_minutes = recording(Path(folder, "long.flac"), MINUTES_5)
        for name, path in (("bach_prelude", example), ("five minutes", five_minutes)):
            facts = {"recording": name, "model": arguments.model}
            case = Case("transcribe", audio_s=probe(path).duration_s, facts=facts)
            subjects = [Subject(who, function, (path,)) for who, function in functions.items()]
            compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)


def basic_pitch() -> Callable[[Path], object]:
    """Basic Pitch with its published weights through ONNX, without its prints."""
    logging.disable(logging.WARNING)
    from basic_pitch import ICASSP_2022_MODEL_PATH
    from basic_pitch.inference import Model, predict

    model = Model(ICASSP_2022_MODEL_PATH)

    def transcribe(path: Path) -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return predict(path, model)[2]

    return transcribe


if __name__ == "__main__":
    main()
