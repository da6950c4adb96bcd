"""`musicjax data render | import | compose`: typed options, a progress bar, one line of result."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicjax.data.options import read_options
from musicjax.errors import ConfigError
from musicjax.files import make_folder

_EXAMPLES = {
    "render": """examples:
  musicjax data render --out data/train --midi pop909.tar.gz giantmidi_piano.tar.gz
      --instruments /usr/share/sounds bank:salamander modelled: --hours 20
  musicjax data render --out data/made-up --hours 2
  musicjax data render --out data/ensemble/train --ensemble --midi quartets.tar.gz pop909.tar.gz
      --drums groove.tar.gz --instruments /usr/share/sounds --hours 20""",
    "import": """examples:
  musicjax data import maestro ~/maestro-v3.0.0          (writes to data/maestro)
  musicjax data import folder recordings --out data/own""",
    "compose": """examples:
  musicjax data compose --out pieces --count 5 --seconds 30 --style song""",
}


@dataclass(frozen=True)
class ComposeConfig:
    """Write random piano pieces as MIDI files."""

    out: Path
    """Folder to write to."""
    count: int = 1
    """How many pieces."""
    seconds: float = 60.0
    """Length of each in seconds."""
    style: str | None = None
    """One style for all, such as song or runs; none mixes them."""
    audio: bool = False
    """Also play each on a modelled piano and write a FLAC file."""
    seed: int = 0
    """Seed; piece i follows from (seed, i)."""


@dataclass(frozen=True)
class Outcome:
    """What an action did, for programs and as lines for people."""

    facts: Mapping[str, Any]
    lines: Sequence[str]


def command(action: str, arguments: Sequence[str]) -> Outcome:
    """Run one action with its command line options.

    Raises ConfigError for options that cannot be read, and as the action does. `--help` leaves by
    SystemExit.
    """
    config_type, run = _actions()[action]
    config = read_options(
        config_type,
        _named(action, arguments),
        prog=f"musicjax data {action}",
        description=f"{config_type.__doc__}\n\n{_EXAMPLES[action]}",
    )
    return run(config)


def _named(action: str, arguments: Sequence[str]) -> list[str]:
    """`import maestro ROOT [OUT]` with names before its values; OUT is data/maestro if left out."""
    rest, named = list(arguments), []
    if action != "import" or not rest or rest[0].startswith("-"):
        return rest
    dataset = rest[0]
    for name in ("--dataset", "--root", "--out"):
        if rest and not rest[0].startswith("-"):
            named += [name, rest.pop(0)]
    if "--out" not in named and not any(a.split("=")[0] == "--out" for a in rest):
        named += ["--out", f"data/{dataset.replace(':', '-')}"]
    return named + rest


def _actions() -> dict[str, tuple[Any, Callable[[Any], Outcome]]]:
    from musicjax.data.imports import ImportConfig
    from musicjax.data.render import RenderConfig

    return {
        "render": (RenderConfig, _render),
        "import": (ImportConfig, _import),
        "compose": (ComposeConfig, _compose),
    }


def _render(config: Any) -> Outcome:
    from musicjax.data.render import render_corpus

    with _progress(f"Rendering to {config.out}") as show:
        count = render_corpus(config, show)
    hours = count * config.excerpt_s / 3600
    facts = {"examples": count, "hours": hours, "out": str(config.out)}
    return Outcome(facts, [f"{count} examples, {hours:.2f} hours, in {config.out}"])


def _import(config: Any) -> Outcome:
    from musicjax.data.imports import import_dataset

    with _progress(f"Importing to {config.out}") as show:
        outcome = import_dataset(**dataclasses.asdict(config), on_progress=show)
    facts = dataclasses.asdict(outcome) | {"out": str(config.out)}
    lines = [f"{s}: {count} examples in {config.out / s}" for s, count in outcome.examples.items()]
    return Outcome(facts, lines + [f"left out: {line}" for line in outcome.left_out])


def _compose(config: ComposeConfig) -> Outcome:
    from musicjax.data.compose import compose
    from musicjax.notes import write_midi

    if config.count < 1:
        raise ConfigError(f"count is {config.count}; expected at least 1.")
    make_folder(config.out)
    with _progress(f"Composing to {config.out}") as show:
        for i in range(config.count):
            rng = np.random.default_rng([config.seed, i])
            notes = compose(rng, config.seconds, config.style)
            write_midi(notes, config.out / f"piece-{i:04d}.mid")
            if config.audio:
                from musicjax.audio import save_audio
                from musicjax.data.instruments import play

                samples = play(notes, "modelled:", 44100, rng, piano=i)
                samples *= 0.9 / max(float(np.abs(samples).max()), 1e-6)
                save_audio(config.out / f"piece-{i:04d}.flac", samples, 44100)
            show(i + 1, config.count)
    facts = {"pieces": config.count, "out": str(config.out)}
    return Outcome(facts, [f"{config.count} pieces in {config.out}"])


@contextmanager
def _progress(title: str):
    """A bar on standard error with the share done, the pace and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    shown = console.is_terminal  # elsewhere rich would end with an empty line
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
