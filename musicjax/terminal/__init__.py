"""What a command says while it works: sentences and progress on stderr, results on stdout."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any


def say(sentence: str) -> None:
    """A sentence to the person, on stderr."""
    print(f"musicjax: {sentence}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


class Bar:
    """Progress over seconds of audio, from the callbacks of the library.

    Silent where stderr is not a terminal.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(f"{title}: loading", total=None, done="")
        self._title = title
        self._total_s: float | None = None
        self._heard: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, total_s: float | None) -> None:
        """The work itself begins; `total_s` seconds of audio are to be heard, if known."""
        self._total_s = total_s
        self._anew(self._title, total_s)

    def heard(self, index: int, seconds: float) -> None:
        """Recording `index` has been heard up to `seconds`."""
        self._heard[index] = seconds
        if self._now() != self._title:  # the weights of another model were fetched in between
            self._anew(self._title, self._total_s)
        self._progress.update(self._task, completed=sum(self._heard.values()))

    def fetched(self, there: int, total: int) -> None:
        """A download has brought `there` of `total` bytes; then the weights are made ready."""
        fetching, loading = (f"{self._title}: {what}" for what in ("fetching weights", "loading"))
        if total and there >= total:
            if self._now() != loading:
                self._anew(loading, None)
            return
        if self._now() != fetching:
            self._anew(fetching, total or None)
        of = f" of {total / 1e6:.1f}" if total else ""
        self._progress.update(self._task, completed=there, done=f"{there / 1e6:.1f}{of} MB")

    def _now(self) -> str:
        return self._progress.tasks[0].description

    def _anew(self, description: str, total: float | None) -> None:
        """Begin another phase: a task that has a total cannot lose it again."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, done="")

    def tell(self, done: str) -> None:
        """A short word at the end of the bar."""
        self._progress.update(self._task, done=done)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Print something that must not run into the bar."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()
