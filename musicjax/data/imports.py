"""Datasets that people own, written as the same records that rendering writes.

What is there is checked, the official split is kept, training recordings are cut into excerpts
that can be read at random, and those for validation and test stay whole.
"""

import concurrent.futures
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicjax.data.corpora import SPLITS
from musicjax.data.layouts import Layout, Track, find_tracks
from musicjax.data.records import SUFFIX, Codec, Example, RecordSource, to_int16, write_shard
from musicjax.errors import AudioError, DataError
from musicjax.files import atomic_write, make_folder
from musicjax.notes import Notes

_MANIFEST = "corpus.json"
_TRACKS_A_SHARD = 8
_SHORTEST_S = 2.0  # a last excerpt below it joins the one before

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImportConfig:
    """Write a dataset that you own as sharded records, in folders train, valid and test."""

    dataset: str
    """maestro, maps, guitarset, slakh, groove, folder (any recordings with MIDI or CSV beside
    them; sub-folders train, valid and test are splits), or mirdata:NAME."""
    root: Path
    """Folder that holds the dataset."""
    out: Path
    """Folder to write to; run again to go on after a stop."""
    sample_rate: int = 16000
    """Sample rate of the records in Hz."""
    excerpt_s: float = 60.0
    """Length of the excerpts that training recordings are cut into, in seconds."""
    codec: Codec = "flac"
    """flac takes about half the space; pcm16 is quickest to read a crop from."""
    splits: tuple[str, ...] = SPLITS
    """Splits to write."""


@dataclass(frozen=True)
class Imported:
    """The outcome: number of examples by split, and sentences about what was left out."""

    examples: dict[str, int]
    left_out: tuple[str, ...]


def import_dataset(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sample_rate: int = 16000,
    excerpt_s: float = 60.0,
    codec: Codec = "flac",
    splits: Sequence[str] = SPLITS,
    on_progress: Progress | None = None,
) -> Imported:
    """Write a dataset below `root` as records in `out/train`, `out/valid` and `out/test`.

    Args: see `ImportConfig`; on_progress is called with (recordings done, recordings in all).

    A recording that cannot be read is left out and named in the outcome. Shards that are already
    there are kept, so a stopped import is taken up by calling this again.

    Raises:
      DataError: the dataset is unknown or not there, or `out` holds something else.
      OutputError: `out` cannot be made.
    """
    layout = find_tracks(dataset, Path(root))
    chosen = [track for track in layout.tracks if track.split in splits]
    if not chosen:
        present = sorted({track.split for track in layout.tracks})
        raise DataError(f"{dataset} has the splits {present}, none of {list(splits)}.")
    out = Path(out)
    _check_manifest(out, dataset, chosen, (sample_rate, excerpt_s, codec))
    failures: list[str] = []
    done = 0
    for split in sorted({track.split for track in chosen}, key=_order):
        tracks = [track for track in chosen if track.split == split]
        length_s = excerpt_s if split == "train" else None
        for number, start in enumerate(range(0, len(tracks), _TRACKS_A_SHARD)):
            group = tracks[start : start + _TRACKS_A_SHARD]
            path = out / split / f"part-{number:05d}{SUFFIX}"
            if not path.exists():
                count = write_shard(path, _examples(group, sample_rate, length_s, failures), codec)
                if not count:  # every recording of it was unreadable
                    path.unlink()
            done += len(group)
            if on_progress:
                on_progress(done, len(chosen))
    return _outcome(out, layout, failures)


def _order(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _outcome(out: Path, layout: Layout, failures: list[str]) -> Imported:
    counts: Counter[str] = Counter()
    for path in sorted(out.glob(f"*/*{SUFFIX}")):
        counts[path.parent.name] += len(RecordSource(path))
    if not sum(counts.values()):
        raise DataError(
            f"no recording could be read: {failures[0]}" if failures else "no examples."
        )
    splits = Counter(track.split for track in layout.tracks)
    skipped = [f"{n} recordings of split {s!r}." for s, n in splits.items() if s not in counts]
    return Imported(dict(counts), (*layout.left_out, *skipped, *failures))


def _examples(
    tracks: list[Track], sample_rate: int, excerpt_s: float | None, failures: list[str]
) -> Iterator[Example]:
    # Decoding and resampling release the interpreter lock; two files are in memory at a time.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(_read, track, sample_rate) for track in tracks[:2]]
        for i, track in enumerate(tracks):
            try:
                samples, notes = reading[i].result()
            except (AudioError, DataError) as error:
                failures.append(f"{track.id}: {error}")
                samples, notes = np.zeros(0, np.int16), Notes.empty()
            if i + 2 < len(tracks):
                reading.append(pool.submit(_read, tracks[i + 2], sample_rate))
            reading[i].cancel()
            if len(samples):
                yield from cut(Example(track.id, sample_rate, samples, notes), excerpt_s)


def _read(track: Track, sample_rate: int) -> tuple[np.ndarray, Notes]:
    from musicjax.audio import load_audio

    return to_int16(load_audio(track.audio, sample_rate).samples), track.read()


def cut(example: Example, excerpt_s: float | None) -> Iterator[Example]:
    """Excerpts of `excerpt_s` seconds, the last one shorter or a little longer; None keeps all.

    A note that sounds on from before an excerpt, held by its key or the pedal, is kept with a
    negative onset.
    """
    rate, total = example.sample_rate, len(example.samples)
    if excerpt_s is None or example.duration_s < excerpt_s + _SHORTEST_S:
        yield example
        return
    step = round(excerpt_s * rate)
    starts = [s for s in range(0, total, step) if total - s >= _SHORTEST_S * rate]
    heard = example.notes.sustained()
    for start, stop in itertools.pairwise([*starts, total]):
        start_s, stop_s = start / rate, stop / rate
        notes = example.notes.slice(start_s, stop_s)
        own = notes[notes.onset_s >= start_s]
        carried = heard[(heard.onset_s < start_s) & (heard.offset_s > start_s)]
        part = Notes.concat([carried, own]).shift(-start_s)
        yield Example(f"{example.id}@{start_s:g}s", rate, example.samples[start:stop], part)


def _check_manifest(out: Path, dataset: str, tracks: list[Track], options: tuple) -> None:
    facts = [dataset, [(track.id, track.split) for track in tracks], options]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]
    path = out / _MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text())["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: delete the folder and import again.") from error
        if found != digest:
            raise DataError(
                f"{out} holds an import of other recordings or with other options: give another "
                "folder, or the same dataset and options as before."
            )
        return
    if out.exists() and next(out.rglob(f"*{SUFFIX}"), None) is not None:
        raise DataError(f"{out} holds records that were not imported here: give another folder.")
    make_folder(out)
    manifest = {"format": 1, "digest": digest, "dataset": dataset, "recordings": len(tracks)}
    with atomic_write(path) as file:
        file.write(json.dumps(manifest, indent=1).encode())
