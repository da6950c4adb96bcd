"""Where scores and recordings lie: corpora of MIDI files with their splits, folders of audio.

A corpus is `NAME.tar.gz` with `splits/NAME_{train,valid,test}.txt` beside it (one path inside the
archive a line), a folder of MIDI files, a text file that lists some, or a single file. Archives
are read in memory: nothing is extracted, so nothing can leave its folder.
"""

import functools
import glob
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from musicjax.data.records import Example, to_int16
from musicjax.errors import DataError
from musicjax.notes import Notes, read_csv, read_midi

SPLITS = ("train", "valid", "test")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus", ".aif", ".aiff")
NOTE_SUFFIXES = (".mid", ".midi", ".notes.csv", ".csv", ".txt")
_MIDI_SUFFIXES = (".mid", ".midi")
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_LARGEST_MEMBER = 32 << 20  # bytes; a MIDI file beyond it is none


@dataclass(frozen=True)
class Score:
    """A MIDI file: a path, or a path to an archive and the name of a member in it."""

    path: str
    member: str = ""

    @property
    def id(self) -> str:
        """A short name: the member or the file's last two parts, without suffix."""
        name = self.member or "/".join(Path(self.path).parts[-2:])
        return name.rsplit(".", 1)[0]

    def read(self) -> Notes:
        """The notes. Raises DataError when the file is missing or damaged."""
        if not self.member:
            return read_midi(self.path)
        data = _members(self.path).get(self.member)
        if data is None:
            raise DataError(f"{self.path} has no member {self.member!r}.")
        return read_midi(io.BytesIO(data))


def find_scores(entry: str | os.PathLike[str], split: str = "all") -> list[Score]:
    """The MIDI files that an archive, folder, list or single file names, in order of name.

    Args:
      entry: see the module's text.
      split: train, valid or test for a corpus that has splits; "all" takes everything.

    Raises:
      DataError: nothing there, no such split, or a listed file is missing.
    """
    path = Path(entry)
    if split != "all" and split not in SPLITS:
        raise DataError(f"split is {split!r}, expected all, {', '.join(SPLITS)}.")
    if not path.exists():
        raise DataError(
            f"{path} does not exist: expected a folder of MIDI files, an archive {_ARCHIVES[0]}, "
            "a text file that lists MIDI files, or one MIDI file."
        )
    if path.name.endswith(_ARCHIVES):
        scores = [Score(str(path), name) for name in _split_members(path, split)]
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _MIDI_SUFFIXES)
        scores = [Score(str(p)) for p in _of_split(path, found, split)]
    elif path.suffix.lower() in _MIDI_SUFFIXES:
        scores = [Score(str(path))]
    else:
        scores = [Score(str(_listed(path, line))) for line in _lines(path)]
    if not scores:
        raise DataError(f"no MIDI file in {path}" + (f" in its {split} split." * (split != "all")))
    return scores


def _of_split(folder: Path, found: list[Path], split: str) -> list[Path]:
    """Files of a folder that lie in its sub-folder `split`, or in the list `splits/*_split.txt`."""
    if split == "all":
        return found
    if (folder / split).is_dir():
        return [p for p in found if (folder / split) in p.parents]
    lists = sorted((folder / "splits").glob(f"*{split}.txt"))
    if not lists:
        raise DataError(
            f"{folder} has no split {split!r}: expected a sub-folder {split} or a list "
            f"splits/NAME_{split}.txt; use split 'all' to take every file."
        )
    wanted = {line for file in lists for line in _lines(file)}
    return [p for p in found if p.relative_to(folder).as_posix() in wanted]


def _split_members(archive: Path, split: str) -> list[str]:
    members = sorted(n for n in _members(str(archive)) if n.lower().endswith(_MIDI_SUFFIXES))
    if split == "all":
        return members
    stem = next(archive.name.removesuffix(s) for s in _ARCHIVES if archive.name.endswith(s))
    file = archive.parent / "splits" / f"{stem}_{split}.txt"
    if not file.is_file():
        raise DataError(
            f"{archive} has no {split} split: expected the list {file}; use split 'all' to take "
            "every file."
        )
    wanted = _lines(file)
    missing = sorted(set(wanted) - set(members))
    if missing:
        raise DataError(
            f"{file} names {len(missing)} files that {archive} lacks, the first is {missing[0]!r}."
        )
    return wanted


@functools.lru_cache(maxsize=8)
def _members(archive: str) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as tar:
            return {
                member.name: tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.isfile()
                and member.name.lower().endswith(_MIDI_SUFFIXES)
                and member.size <= _LARGEST_MEMBER
            }
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive} is not a complete archive ({error}): get it again.") from error


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a text file that lists MIDI files.") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _listed(file: Path, line: str) -> Path:
    path = file.parent / line
    if not path.is_file():
        raise DataError(f"{file} lists {line!r}, which is not there (looked for {path}).")
    return path


@dataclass(frozen=True)
class Recording:
    """A recording on disk with its notes beside it; audio is read when asked for.

    Stands wherever a `Record` does. sample_rate is what `crop` delivers, whatever the file has.
    """

    id: str
    audio: Path
    truth: Path
    sample_rate: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def notes(self) -> Notes:
        """The notes, with their pedal when the file has one."""
        return read_notes(self.truth)

    def crop(self, start: int, num_samples: int) -> Int16[np.ndarray, " M"]:
        """At most `num_samples` samples from `start` on, mixed to mono and resampled."""
        count = max(0, min(num_samples, self.num_samples - start))
        return to_int16(_read_part(self.audio, start, count, self.sample_rate))

    def example(self) -> Example:
        """Everything decoded."""
        return Example(self.id, self.sample_rate, self.crop(0, self.num_samples), self.notes)


class RecordingSource(Sequence[Recording]):
    """Random access to recordings; files are opened when an item is used."""

    def __init__(self, pairs: Sequence[tuple[str, Path, Path]], sample_rate: int) -> None:
        self._pairs, self._sample_rate = list(pairs), sample_rate

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, audio, truth = self._pairs[index]
        rate = self._sample_rate
        return Recording(name, audio, truth, rate, round(_duration_s(audio) * rate))

    def examples(self) -> Iterator[Example]:
        """All examples in order, decoded."""
        return (self[i].example() for i in range(len(self)))


def folder_source(entry: str | os.PathLike[str], sample_rate: int = 16000) -> RecordingSource:
    """Recordings that have notes beside them: the same name with .mid, .midi, .notes.csv, .csv
    or .txt.

    Args:
      entry: a folder, searched with its sub-folders; a pattern such as `clips/piano_*.flac`; or
        one recording.
      sample_rate: rate to deliver, Hz.

    Raises:
      DataError: no recording there has notes.
    """
    pairs = pair_recordings(Path(entry))
    if not pairs:
        raise DataError(
            f"no recording with notes at {entry}: expected pairs such as piece.wav and "
            f"piece.mid (audio: {', '.join(AUDIO_SUFFIXES)}; notes: {', '.join(NOTE_SUFFIXES)})."
        )
    return RecordingSource(pairs, sample_rate)


def pair_recordings(path: Path) -> list[tuple[str, Path, Path]]:
    """(id, audio, notes) of every recording that has notes beside it: those below a folder, those
    that a pattern matches, or the one at a path."""
    if path.is_dir():
        folder, found = path, list(path.rglob("*"))
    else:
        folder, found = path.parent, [Path(name) for name in glob.glob(str(path))]
    pairs = []
    for audio in sorted(p for p in found if p.suffix.lower() in AUDIO_SUFFIXES):
        stem = audio.with_suffix("")
        candidates = (stem.with_name(stem.name + suffix) for suffix in NOTE_SUFFIXES)
        truth = next((c for c in candidates if c.is_file()), None)
        if truth is not None:
            name = stem.relative_to(folder).as_posix() if path.is_dir() else stem.name
            pairs.append((name, audio, truth))
    return pairs


def read_notes(path: Path) -> Notes:
    """Notes from MIDI, CSV with named columns, or MAPS text (onset, offset, pitch by tabs)."""
    if path.suffix.lower() in _MIDI_SUFFIXES:
        return read_midi(path)
    return read_csv(path)


def _duration_s(audio: Path) -> float:
    from musicjax.audio import probe

    return probe(audio).duration_s


def _read_part(audio: Path, start: int, count: int, sample_rate: int) -> np.ndarray:
    """Part of a file, at `sample_rate`; formats that cannot be sought in are read whole."""
    import soundfile

    try:
        with soundfile.SoundFile(audio) as file:
            rate = file.samplerate
            # A little more at both ends, so that the resampler has settled where the part begins.
            margin = min(start, sample_rate // 10)
            file.seek(min(round((start - margin) * rate / sample_rate), file.frames))
            wanted = -(-(count + 2 * margin + 16) * rate // sample_rate)
            part = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.LibsndfileError:
        from musicjax.audio import load_audio

        return load_audio(audio, sample_rate).samples[start : start + count]
    if rate != sample_rate:
        import soxr

        part = soxr.resample(part, rate, sample_rate)
    return part[margin : margin + count]
