"""Many recordings to many files: where each result goes, and what became of it."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicjax.errors import AudioError, MusicJaxError, OutputError
from musicjax.files import check_writable, make_folder

if TYPE_CHECKING:
    from musicjax.tasks.caption import Captioner
    from musicjax.tasks.pitch import PitchTracker
    from musicjax.tasks.transcribe import Transcriber

FORMATS = (".mid", ".midi", ".csv", ".json", ".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Job:
    """One recording and the files that its notes are written to."""

    source: Path
    outputs: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one job: files written and what they hold, or a sentence on why not."""

    source: str
    outputs: tuple[str, ...]
    notes: int = 0
    duration_s: float = 0.0
    error: str | None = None
    text: str | None = None  # of a caption
    model: str = ""
    doubt: str | None = None  # of the model, whether the sound was one that it was made for


def plan(
    sources: Sequence[str | os.PathLike[str]],
    outputs: Sequence[str | os.PathLike[str]] = (),
    formats: Sequence[str] = ("mid",),
    *,
    known: Sequence[str] = FORMATS,
) -> list[Job]:
    """Where each recording's result goes, checked before any work is done.

    An output with a known ending is a file, for one recording. Any other is a folder, made if it
    is missing, that gets `name.format` for each recording and format; without outputs the current
    folder does. Existing files will be replaced as a whole. `known` are the endings of the verb.

    Raises OutputError when an output is also an input, when two recordings would go to one file,
    when one file is asked for several recordings or twice, and when something cannot be written or
    a recording has no name.
    """
    if not all(map(os.fspath, sources)):
        raise OutputError("the name of a recording is empty; give the path of a file.")
    jobs = [Job(Path(s), tuple(_targets(s, outputs, formats, known))) for s in sources]
    inputs = {os.path.realpath(job.source) for job in jobs}
    taken: dict[str, Path] = {}
    for job in jobs:
        for output in job.outputs:
            place = os.path.realpath(output)
            if place in inputs:
                raise OutputError(
                    f"the output {output} is also an input; write to another name or folder."
                )
            if place in taken and os.path.realpath(taken[place]) == os.path.realpath(job.source):
                raise OutputError(
                    f"{job.source} would be written to {output} twice; name each recording and "
                    "each output once."
                )
            if place in taken:
                raise OutputError(
                    f"{taken[place]} and {job.source} would both be written to {output}; give a "
                    "folder for several recordings, and different names to recordings of one run."
                )
            taken[place] = job.source
            check_writable(output)
    return jobs


def _targets(
    source: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    formats: Sequence[str],
    known: Sequence[str],
) -> Iterator[Path]:
    for output in outputs or (".",):
        path = Path(output).expanduser()
        is_folder = path.is_dir() or os.fspath(output).endswith(("/", os.sep)) or not path.suffix
        if not is_folder or (path.exists() and not path.is_dir()):
            if path.suffix.lower() not in known:
                raise OutputError(
                    f"the output {output} has no known ending; give a folder, or a file ending in "
                    f"{', '.join(known)}."
                )
            yield path
            continue
        make_folder(path)
        for name in formats:
            yield path / f"{Path(source).stem}.{name.lstrip('.')}"


def not_there(jobs: Sequence[Job]) -> list[Outcome]:
    """What becomes of the jobs whose recording is no file: to be asked before a model is loaded."""
    from musicjax.audio import probe

    found = []
    for job in jobs:
        if job.source.exists() and not job.source.is_dir():
            continue  # a pipe can be read only once: not now
        try:
            probe(job.source)
        except AudioError as error:
            found.append(Outcome(str(job.source), (), error=str(error)))
    return found


def transcribe_files(
    transcriber: "Transcriber",
    jobs: Sequence[Job],
    *,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Transcribe and write one after the other; each file is there as soon as it is yielded.

    A recording that cannot be read or decoded, or a result that cannot be written, gives an outcome
    with its error and the others go on. What was written before an interruption stays.
    """
    sources: Iterable[Path] = (job.source for job in jobs)
    return _written(jobs, transcriber.transcribe_many(sources, progress=progress, **options))


def pitch_files(
    tracker: "PitchTracker",
    jobs: Sequence[Job],
    *,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Follow the pitch of each recording and write it; as `transcribe_files`."""
    sources: Iterable[Path] = (job.source for job in jobs)
    return _written(jobs, tracker.pitch_many(sources, progress=progress, **options))


def caption_files(
    captioner: "Captioner",
    jobs: Sequence[Job],
    *,
    progress: Callable[[int, float], None] | None = None,
) -> Iterator[Outcome]:
    """Caption each recording and write its sentences; as `transcribe_files`."""
    sources: Iterable[Path] = (job.source for job in jobs)
    return _written(jobs, captioner.caption_many(sources, progress=progress))


def _written(jobs: Sequence[Job], results: Iterable[Any]) -> Iterator[Outcome]:
    from musicjax.infer import attempt  # which imports jax: not before outputs are checked

    for job, result in zip(jobs, results, strict=True):
        name = str(job.source)
        if isinstance(result, Exception):
            yield Outcome(name, (), error=_sentence(result, name))
            continue
        written = attempt(functools.partial(_write, result, job.outputs))
        if isinstance(written, Exception):
            yield Outcome(name, (), error=_sentence(written, name))
            continue
        text = getattr(result, "text", None)
        count = len(result.notes) if text is None else 0
        model, doubt = getattr(result, "model", ""), getattr(result, "doubt", None)
        seconds = round(result.duration_s, 3)
        yield Outcome(name, written, count, seconds, text=text, model=model, doubt=doubt)


def _write(result: Any, outputs: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(result.write(output)) for output in outputs)


def _sentence(error: Exception, name: str) -> str:
    if isinstance(error, MusicJaxError):
        return str(error)
    return f"{name}: {type(error).__name__}: {error}"
