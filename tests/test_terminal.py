"""What a person sees while a command works."""

import io

import pytest
from rich.console import Console

from musicjax.terminal import Bar


@pytest.fixture
def shown(monkeypatch):
    """A bar on a terminal that keeps what is shown, and how it looks now."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)

    def now(bar):
        task = bar._progress.tasks[0]
        return task.description, task.completed, task.total, task.fields["done"]

    return now


def test_fetching_then_loading_then_listening(shown):
    with Bar("song.flac") as bar:
        assert shown(bar) == ("song.flac: loading", 0, None, "")
        bar.fetched(25_000_000, 50_000_000)
        said = "song.flac: fetching weights", 25_000_000, 50_000_000, "25.0 of 50.0 MB"
        assert shown(bar) == said
        bar.fetched(50_000_000, 50_000_000)
        assert shown(bar)[0] == "song.flac: loading"
        assert shown(bar)[2:] == (None, "")
        bar.start(60.0)
        assert shown(bar) == ("song.flac", 0, 60.0, "")
        bar.heard(0, 20.0)
        bar.heard(1, 10.0)
        assert shown(bar)[1] == 30.0
        bar.fetched(1, 2)  # of the next model
        bar.heard(2, 5.0)
        assert shown(bar) == ("song.flac", 35.0, 60.0, "")
    with Bar("unknown size") as bar:
        bar.fetched(1_500_000, 0)
        assert shown(bar)[2:] == (None, "1.5 MB")
