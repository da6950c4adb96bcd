"""What a run tells: a JSON line per log step, TensorBoard scalars, a progress bar, sentences.

Only process 0 writes. The terminal's bar shows examples and seconds of audio per second, the
share of time that the device waited for input, and the estimated end.
"""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jax

from musicjax.errors import MissingDependencyError
from musicjax.files import atomic_write
from musicjax.hub.typed_json import to_json
from musicjax.train.config import RunConfig
from musicjax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, Any]:
    """Versions, device and git revision: what a number must be read together with."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = jax.devices()
    return {
        "musicjax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": devices[0].device_kind,
        "backend": devices[0].platform,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """Commit of the source tree this package runs from, with "+changes" if it was edited."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]

    def run(*args: str) -> str:
        done = subprocess.run([*git, *args], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        commit, changes = run("rev-parse", "HEAD"), run("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


class RunLog:
    """The log files of one run directory and its progress bar; use as a context manager."""

    def __init__(self, config: RunConfig, *, start_step: int = 0, show: bool = True) -> None:
        from rich.console import Console

        self.config = config
        self.writes = jax.process_index() == 0
        self.run_dir = Path(config.output)
        self.console = Console(stderr=True, quiet=not (show and self.writes))
        self._start_step = start_step
        self._lines: Any = None
        self._board: Any = None
        self._progress: Any = None
        if not self.writes:
            return
        path = self.run_dir / "log.jsonl"
        _forget_after(path, start_step)
        self._lines = path.open("a")
        if config.tensorboard:
            self._board = _summary_writer(self.run_dir / "tensorboard")

    def __enter__(self) -> "RunLog":
        if self.console.is_terminal and not self.console.quiet:
            self._progress = _progress_bar(self.console)
            self._progress.start()
            self._task = self._progress.add_task(
                self.config.system, total=self.config.steps, completed=self._start_step, words=""
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        if self._lines:
            self._lines.close()

    def say(self, sentence: str) -> None:
        """Tell the person at the terminal something."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One JSON line `{"kind", "step", …}`, and the same numbers to TensorBoard.

        Numbers that JSON lacks (NaN, infinities) become null.
        """
        if not self.writes:
            return
        line = {"kind": kind, "step": step, "time_s": round(time.time(), 3)}
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({**line, **finite}) + "\n")
        self._lines.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        words = self._words(kind, step, values)
        if self._progress and kind == "train":
            self._progress.update(self._task, completed=step, words=words)
        else:
            self.say(f"{kind} {step}/{self.config.steps}: {words}")

    def _words(self, kind: str, step: int, values: Mapping[str, float]) -> str:
        if kind != "train":
            return " · ".join(f"{k} {v:.4g}" for k, v in values.items())
        words = [f"loss {values['loss']:.4f}"]
        if values.get("skipped"):
            words.append(f"{values['skipped']:.0f} steps skipped")
        if "step_s" in values:
            left = timedelta(seconds=values["step_s"] * (self.config.steps - step))
            words += [
                f"{values['examples_per_s']:.2f} examples/s",
                f"{values['audio_s_per_s']:.0f} s of audio/s",
                f"input wait {values['input_stall']:.0%}",
                f"ends {(datetime.now() + left):%a %H:%M}",
            ]
        return " · ".join(words)


def write_run_files(config: RunConfig) -> None:
    """The resolved configuration and the environment, as JSON in the run directory."""
    if jax.process_index() != 0:
        return
    run_dir = Path(config.output)
    _write_json(run_dir / "config.json", to_json(config))
    _write_json(run_dir / "environment.json", environment())


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def _forget_after(path: Path, step: int) -> None:
    """Drop lines of steps that a resumed run is going to repeat."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            continue
        if entry.get("step", 0) <= step:
            kept.append(line + "\n")
    with atomic_write(path) as file:
        file.write("".join(kept).encode())


def _progress_bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _summary_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard logs need the package tensorboardX: pip install 'musicjax[train]', or "
            "train with --tensorboard False."
        ) from error
    return SummaryWriter(str(folder))
