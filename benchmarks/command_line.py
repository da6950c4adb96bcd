"""What a person waits for at a terminal: import, help, the first transcription, an hour of audio.

    python benchmarks/command_line.py                     # all but the hour
    python benchmarks/command_line.py --hour              # and the hour: time and peak memory

Every measurement is a fresh process, and its memory is that process's own. `cold` transcribes with
an empty compile cache, `warm` with the cache that an earlier process left.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from harness import Case, Subject, compare

from musicjax.audio import load_audio, save_audio

ROOT = Path(__file__).resolve().parent.parent
CLIP_S = 30.0
HOUR_S = 3600.0


class Process:
    """A command as a function that can be timed; keeps the largest peak memory of its runs."""

    def __init__(self, *command: str, cache: Path | None = None, fresh: bool = False) -> None:
        self.command = [sys.executable, *command]
        self.cache, self.fresh, self.peak_mb = cache, fresh, 0.0

    def __call__(self) -> None:
        with tempfile.TemporaryDirectory() as empty:
            cache = empty if self.fresh or self.cache is None else str(self.cache)
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache}
            environment["MUSICJAX_CACHE"] = cache
            process = subprocess.Popen(
                self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            watcher = threading.Thread(target=self._watch, args=(process,))
            watcher.start()
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, self.command)
        watcher.join()

    def _watch(self, process: subprocess.Popen) -> None:
        # The kernel's own account of a child (ru_maxrss) begins with its parent's size: read the
        # high-water mark instead, which begins anew with the program. Linux only; elsewhere 0.
        while process.returncode is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                marks = [int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")]
                self.peak_mb = max([self.peak_mb, *(mark / 1024 for mark in marks)])
            time.sleep(0.02)

    def subject(self, name: str) -> Subject:
        """This command under a name."""
        return Subject(name, self, memory_mb=lambda: self.peak_mb)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="onsets_frames.small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hour", action="store_true", help="also an hour of audio")
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()

    def measure(what: str, audio_s: float, subjects: list[Subject], repeats: int) -> None:
        facts = {"what": what} | ({"model": arguments.model} if audio_s else {})
        case = Case("command_line", audio_s=audio_s, facts=facts)
        record = not arguments.dry_run
        compare(case, subjects, min_repeats=repeats, budget_s=0, record=record)

    bare = Process("-c", "pass").subject("python alone")
    imported = Process("-c", "import musicjax").subject("import musicjax")
    help_shown = Process("-m", "musicjax", "--help").subject("musicjax --help")
    measure("start", 0.0, [bare, imported, help_shown], 4 * arguments.repeats)

    with tempfile.TemporaryDirectory() as folder:
        out, cache = str(Path(folder, "out.mid")), Path(folder, "cache")
        verb = ("-m", "musicjax", "transcribe", "--model", arguments.model, "-o", out)
        clip = str(recording(Path(folder, "clip.flac"), CLIP_S))
        cold = Process(*verb, clip, fresh=True).subject("cold")
        warm = Process(*verb, clip, cache=cache).subject("warm")
        measure("transcribe 30 s", CLIP_S, [warm, cold], arguments.repeats)
        if arguments.hour:
            hour = str(recording(Path(folder, "hour.flac"), HOUR_S))
            long = Process(*verb, hour, cache=cache).subject("warm")
            measure("transcribe an hour", HOUR_S, [long], 1)


def recording(path: Path, seconds: float) -> Path:
    """The shipped example, played over and over for that long."""
    audio = load_audio(ROOT / "examples" / "bach_prelude.flac", 16000)
    repeats = int(np.ceil(seconds / audio.duration_s))
    samples = np.tile(audio.samples, repeats)[: round(seconds * audio.sample_rate)]
    save_audio(path, samples, audio.sample_rate)
    return path


if __name__ == "__main__":
    main()
