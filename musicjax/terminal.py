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
        self._heard: dict[int, float] = {}

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, total_s: float | None) -> None:
        """The work itself begins; `total_s` seconds of audio are to be heard, if known."""
        self._progress.update(self._task, description=self._title, total=total_s)

    def heard(self, index: int, seconds: float) -> None:
        """Recording `index` has been heard up to `seconds`."""
        self._heard[index] = seconds
        self._progress.update(self._task, completed=sum(self._heard.values()))

    def fetched(self, there: int, total: int) -> None:
        """A download has brought `there` of `total` bytes."""
        self._progress.update(
            self._task,
            description=f"{self._title}: fetching weights",
            completed=there,
            total=total or None,
            done=f"{there / 1e6:.0f} MB",
        )

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
