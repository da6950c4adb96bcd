"""Several models on one recording: what each hears, beside the others and beside the truth."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from musicjax.audio import Audio, load_audio, probe
from musicjax.errors import ConfigError, MusicJaxError, OutputError
from musicjax.files import atomic_write
from musicjax.infer import DRAWN_S, Recording, as_recording, part_of
from musicjax.metrics import NoteScores, note_scores
from musicjax.notes import Notes

PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What several models heard in one recording.

    notes       model -> what it heard, in the order in which the models were named
    failures    model -> a sentence on why there is nothing of it
    truth       what was played, if that is known
    scores      model -> its scores against the truth, both with notes as long as they sound
    duration_s  of the recording
    audio       the recording as it was handed in, for `plot`
    """

    notes: Mapping[str, Notes]
    failures: Mapping[str, str]
    truth: Notes | None
    scores: Mapping[str, NoteScores]
    duration_s: float
    audio: str | os.PathLike[str] | Audio | None = field(default=None, repr=False)

    FORMATS: ClassVar[tuple[str, ...]] = (*PICTURES, ".json")

    def plot(
        self,
        path: str | os.PathLike[str] | BinaryIO | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Any:
        """Draw the rolls one above the other, the truth on top; matplotlib's figure.

        `start_s` and `end_s` choose a part; of more than an hour the sound is left out. With
        `path` the picture is also written there.
        """
        from musicjax.plots import plot_transcriptions

        end_s = self.duration_s if end_s is None else min(end_s, self.duration_s)
        drawn = self.audio is not None and end_s - start_s <= DRAWN_S
        title = None
        if isinstance(self.audio, str | os.PathLike):
            title = Path(self.audio).stem.replace("_", " ")
        return plot_transcriptions(
            {name: notes.sustained() for name, notes in self.notes.items()},
            reference=None if self.truth is None else self.truth.sustained(),
            audio=part_of(self.audio, start_s, end_s) if drawn and self.audio is not None else None,
            start_s=start_s,
            end_s=end_s,
            title=title,
            path=path,
        )

    def as_dict(self) -> dict[str, Any]:
        """Counts, scores and failures, for JSON."""
        models: dict[str, dict[str, Any]] = {}
        for name, notes in self.notes.items():
            models[name] = {"notes": len(notes)}
            if name in self.scores:
                rounded = {k: round(v, 4) for k, v in self.scores[name].as_dict().items()}
                models[name]["scores"] = rounded
        models |= {name: {"error": sentence} for name, sentence in self.failures.items()}
        recording = os.fspath(self.audio) if isinstance(self.audio, str | os.PathLike) else None
        return {
            "recording": recording,
            "duration_s": round(self.duration_s, 3),
            "truth_notes": None if self.truth is None else len(self.truth),
            "models": models,
        }

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture, or with the ending .json what `as_dict` tells."""
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            with atomic_write(path) as file:
                file.write(json.dumps(self.as_dict(), indent=1).encode())
        elif suffix in PICTURES:
            self.plot(path)
        else:
            raise OutputError(
                f"cannot write {path}: {suffix or 'no ending'} is not a known form; give a file "
                f"ending in {', '.join(self.FORMATS)}."
            )
        return Path(path)


def compare(
    source: Recording | np.ndarray | tuple[np.ndarray, int],
    models: Sequence[str | os.PathLike[str]] | None = None,
    *,
    sample_rate: int | None = None,
    truth: Notes | str | os.PathLike[str] | None = None,
    device: str | None = None,
    fetched: Callable[[int, int], None] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Comparison:
    """What several models hear in one recording, one after the other.

    Args:
      source: as for `Transcriber.transcribe`.
      models: names or weights files; None takes all transcribers that need no download.
      truth: what was played, as notes or as the path of a MIDI, CSV or JSON file.
      fetched: called with bytes there and bytes in all while weights are downloaded.
      progress: called with the model's place and the seconds it has heard.

    A model that cannot be loaded, or fails, is told in `failures`, and the others go on; memory
    holds one model at a time. Raises AudioError or DataError where recording or truth cannot be
    read, ConfigError where there are no models.
    """
    from musicjax.tasks.choice import at_hand

    names = list(dict.fromkeys(os.fspath(m) for m in (at_hand() if models is None else models)))
    if not names:
        raise ConfigError("there are no models to compare; name one or more of `musicjax models`.")
    played = _read_truth(truth)
    recording = as_recording(source, sample_rate)
    if not isinstance(recording, str | os.PathLike | Audio):
        recording = load_audio(recording, mono=False)  # a stream can be read only once
    duration_s = (
        recording.duration_s if isinstance(recording, Audio) else probe(recording).duration_s
    )
    heard: dict[str, Notes] = {}
    failures: dict[str, str] = {}
    for place, name in enumerate(names):
        try:
            heard[name] = _heard(recording, name, place, device, fetched, progress)
        except MusicJaxError as error:
            failures[name] = str(error)
        except Exception as error:  # it must not lose what the others hear: it is reported
            failures[name] = f"{name} failed: {type(error).__name__}: {error}"
    scores = {}
    if played is not None:
        scores = {n: note_scores(played.sustained(), h.sustained()) for n, h in heard.items()}
    return Comparison(heard, failures, played, scores, duration_s, recording)


def _heard(
    recording: Recording,
    name: str,
    place: int,
    device: str | None,
    fetched: Callable[[int, int], None] | None,
    progress: Callable[[int, float], None] | None,
) -> Notes:
    from musicjax.tasks.loading import load

    def told(_: int, seconds: float) -> None:
        if progress is not None:
            progress(place, seconds)

    transcriber = load(name, task="transcribe", device=device, progress=fetched)
    (result,) = transcriber.transcribe_many([recording], progress=told)
    if isinstance(result, Exception):
        raise result
    return result.notes


def _read_truth(truth: Notes | str | os.PathLike[str] | None) -> Notes | None:
    if truth is None or isinstance(truth, Notes):
        return truth
    if Path(truth).suffix.lower() == ".json":
        from musicjax.notes import read_json

        return read_json(truth)
    from musicjax.data.corpora import read_notes

    return read_notes(Path(truth))
