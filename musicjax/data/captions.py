"""Recordings and sentences about them: JSON lines, and sentences made up about composed pieces.

A line of a `.jsonl` file is `{"audio": "a.flac", "text": "A calm piano piece."}`. The path is
relative to the file's folder; `text` may be a list, of which one is drawn each time; `start_s` and
`end_s`, if they are there, cut out the part that the sentence is about (MusicCaps' ten seconds).
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from musicjax.audio import probe
from musicjax.data.corpora import Recording
from musicjax.data.records import to_float
from musicjax.errors import DataError
from musicjax.notes import Notes

SUFFIX = ".jsonl"
_LISTED = 5  # faults of a file that are told


@dataclass(frozen=True)
class Captioned:
    """A part of a recording and the sentences about it; audio is read when asked for."""

    id: str
    audio: Path
    texts: tuple[str, ...]
    sample_rate: int  # that is delivered, whatever the file has
    start_s: float = 0.0
    end_s: float | None = None

    def clip(
        self, rng: np.random.Generator, num_samples: int
    ) -> tuple[Float32[np.ndarray, " M"], str]:
        """At most `num_samples` from anywhere in the part, and one of the sentences."""
        recording, begin, count = self._part()
        spare = count - num_samples
        start = begin + (int(rng.integers(0, spare + 1)) if spare > 0 else 0)
        samples = recording.crop(start, min(num_samples, count))
        return to_float(samples), str(self.texts[int(rng.integers(len(self.texts)))])

    def samples(self) -> Float32[np.ndarray, " M"]:
        """The whole part."""
        recording, begin, count = self._part()
        return to_float(recording.crop(begin, count))

    def _part(self) -> tuple[Recording, int, int]:
        rate = self.sample_rate
        total = round(_duration_s(self.audio) * rate)
        begin = min(round(self.start_s * rate), total)
        end = total if self.end_s is None else min(round(self.end_s * rate), total)
        if end <= begin:
            raise DataError(
                f"{self.id} is about {begin / rate:g} s to {end / rate:g} s of {self.audio}, which "
                f"lasts {total / rate:.1f} s: there is no sound; correct start_s and end_s."
            )
        return Recording(self.id, self.audio, self.audio, rate, total), begin, end - begin


@functools.lru_cache(maxsize=65_536)
def _duration_s(audio: Path) -> float:
    return probe(audio).duration_s


class CaptionSource(Sequence[Captioned]):
    """Random access to the lines of a file."""

    def __init__(self, items: Sequence[Captioned]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


def caption_source(path: str | Path, sample_rate: int = 16_000) -> CaptionSource:
    """The recordings and sentences of a `.jsonl` file, at that rate in Hz.

    Raises DataError with the first faults of the file: lines that are no JSON, lack something or
    name a recording that is not there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); check the path.") from error
    items, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(line, number, path, sample_rate))
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            faults.append(f"line {number}: {reason}")
    if faults:
        more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise DataError(
            f"{path} has {len(faults)} lines that cannot be used ({'; '.join(faults[:_LISTED])}"
            f'{more}); a line is {{"audio": "a.flac", "text": "A calm piano piece."}}.'
        )
    if not items:
        raise DataError(f"{path} has no lines; there is nothing to learn from.")
    return CaptionSource(items)


def _item(line: str, number: int, path: Path, sample_rate: int) -> Captioned:
    found = json.loads(line)
    if not isinstance(found, Mapping):
        raise ValueError(f"a JSON object was expected, not {type(found).__name__}")
    audio = path.parent / Path(str(found["audio"])).expanduser()
    text = found["text"]
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError("text is empty or not text")
    if not audio.is_file():
        raise ValueError(f"there is no {audio}")
    end_s = found.get("end_s")
    return Captioned(
        id=str(found.get("id", f"{path.stem}-{number}")),
        audio=audio,
        texts=texts,
        sample_rate=sample_rate,
        start_s=float(found.get("start_s", 0.0)),
        end_s=None if end_s is None else float(end_s),
    )


def caption_examples(
    entries: Sequence[str], sample_rate: int
) -> Iterator[tuple[str, Float32[np.ndarray, " M"], tuple[str, ...]]]:
    """(id, samples, sentences) of what `DataConfig.valid` names, whole and in order."""
    from musicjax.data.pipeline import examples

    for entry in entries:
        if Path(entry).suffix == SUFFIX:
            for item in caption_source(entry, sample_rate):
                yield item.id, item.samples(), item.texts
            continue
        for number, example in enumerate(examples((_composer(entry),), sample_rate)):
            text = describe(example.notes, example.duration_s, np.random.default_rng(number))
            yield example.id, to_float(example.samples), (text,)


def _composer(entry: str) -> str:
    name, _, bank = entry.partition(":")
    if name != "captions":
        raise DataError(
            f"{entry} holds no sentences; give a {SUFFIX} file, or captions: for composed pieces."
        )
    return f"composer:{bank}"


# Sentences about composed pieces ------------------------------------------------------------

_PACE = ((1.0, "very slow"), (2.5, "slow"), (5.0, "moderate"), (9.0, "fast"))
_LOUDNESS = ((35, "very quiet"), (55, "soft"), (75, "medium"), (95, "loud"))
_REGISTER = ((50, "low"), (60, "medium low"), (72, "middle"), (84, "high"))
_TOGETHER = ((1.2, "single notes"), (1.8, "a melody and few chords"), (2.6, "chords"))
_TEMPLATES = (
    "a {loudness} and {pace} piano piece in the {register} register, with {texture}.",
    "solo piano, {pace} and {loudness}, with {texture} in the {register} register.",
    "this is a {pace} passage for piano. it is {loudness}, and the {register} register "
    "is played with {texture}.",
    "the piano plays {texture} in the {register} register. the music is {loudness} and {pace}.",
)


def describe(notes: Notes, duration_s: float, rng: np.random.Generator) -> str:
    """A sentence about a piece for piano: its pace, loudness, register and texture.

    All of it can be heard, and all words are in `musicjax.text.WORDS`. `rng` draws the wording.
    """
    if not len(notes):
        return "almost silence."
    onsets = np.sort(notes.onset_s)
    strokes = 1 + int(np.sum(np.diff(onsets) > 0.03))  # notes struck together are one
    facts = {
        "pace": _name(strokes / duration_s, _PACE, "very fast"),
        "loudness": _name(float(np.mean(notes.velocity)), _LOUDNESS, "very loud"),
        "register": _name(float(np.median(notes.pitch)), _REGISTER, "very high"),
        "texture": _name(len(notes) / strokes, _TOGETHER, "dense chords"),
    }
    return _TEMPLATES[int(rng.integers(len(_TEMPLATES)))].format(**facts)


def _name(value: float, below: tuple[tuple[float, str], ...], last: str) -> str:
    return next((name for limit, name in below if value < limit), last)
