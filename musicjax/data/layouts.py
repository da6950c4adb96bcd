"""Datasets that people own, known by the layout of their folders: who is who, and which split.

MAESTRO (any version), MAPS, GuitarSet, Slakh and Groove are read from their own tables and names;
`mirdata:NAME` reads every other dataset with notes that the package mirdata knows. Nothing is
downloaded.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicjax.data.corpora import AUDIO_SUFFIXES, pair_recordings, read_notes
from musicjax.errors import DataError, MissingDependencyError
from musicjax.notes import Notes, read_midi

_SPLIT_NAMES = {"validation": "valid", "dev": "valid", "val": "valid"}
_MAPS_TEST = ("ENSTDkAm", "ENSTDkCl")  # the two Disklaviers (Sigtia et al. 2016, configuration 2)
_MAPS_NAME = re.compile(r"MAPS_MUS-(?P<piece>.+)_(?P<piano>[A-Za-z0-9]+)$")
_GUITARSET_NAME = re.compile(r"(?P<player>\d\d)_(?P<style>[A-Za-z]+)(?P<progression>\d)-")
_NYLON_GUITAR = 24  # General MIDI program by which GuitarSet goes in MT3


@dataclass(frozen=True)
class Track:
    """One recording of a dataset: where it is, which split it is in, and how to read its notes."""

    id: str
    split: str
    audio: Path
    read: Callable[[], Notes]


@dataclass(frozen=True)
class Layout:
    """What was found: the recordings, and sentences about what is missing or left out."""

    tracks: tuple[Track, ...]
    left_out: tuple[str, ...] = ()


def find_tracks(dataset: str, root: Path) -> Layout:
    """The recordings of a dataset below `root`.

    Args:
      dataset: maestro, maps, guitarset, slakh, groove, folder (pairs of audio and notes), or
        mirdata:NAME.
      root: folder that holds the dataset, or holds its folder.

    Raises:
      DataError: unknown dataset, or nothing of it is there.
    """
    name, _, inner = dataset.partition(":")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that {dataset} was unpacked to.")
    if name == "mirdata":
        return _mirdata(inner, root)
    if inner or name not in LAYOUTS:
        raise DataError(
            f"dataset {dataset!r} is not known; expected {', '.join(LAYOUTS)} or mirdata:NAME."
        )
    layout = LAYOUTS[name](root)
    if not layout.tracks:
        details = " ".join(layout.left_out)
        raise DataError(f"no recording with notes of {name} is below {root}. {details}".strip())
    return layout


def _maestro(root: Path) -> Layout:
    table = _one_file(root, "maestro*.csv", "MAESTRO's table maestro-v*.csv")
    rows = _read_table(table, ("split", "midi_filename", "audio_filename"))
    return _from_table(table, rows)


def _groove(root: Path) -> Layout:
    table = _one_file(root, "info.csv", "Groove's table info.csv")
    rows = _read_table(table, ("split", "midi_filename", "audio_filename"))
    silent = sum(not row["audio_filename"] for row in rows)
    layout = _from_table(table, [row for row in rows if row["audio_filename"]])
    note = f"{silent} takes were published without audio." if silent else ""
    return Layout(layout.tracks, (*layout.left_out, *filter(None, [note])))


def _from_table(table: Path, rows: list[dict[str, str]]) -> Layout:
    tracks, missing = [], []
    for row in rows:
        audio = _in_any_format(table.parent / row["audio_filename"])
        midi = _first(table.parent / row["midi_filename"])
        if audio is None or midi is None:
            missing.append(row["audio_filename"] if audio is None else row["midi_filename"])
            continue
        name = row["midi_filename"].rsplit(".", 1)[0]
        tracks.append(Track(name, _split(row["split"]), audio, _reader(midi)))
    return Layout(tuple(tracks), _missing(missing, f"listed in {table.name}"))


def _maps(root: Path) -> Layout:
    found = []
    for audio in sorted(root.rglob("MUS/*.wav")):
        match = _MAPS_NAME.match(audio.stem)
        truth = _first(audio.with_suffix(".mid"), audio.with_suffix(".txt"))
        if match:
            found.append((match["piece"], match["piano"], audio, truth))
    missing = [str(audio.with_suffix(".mid").name) for _, _, audio, truth in found if not truth]
    tested = {piece for piece, piano, _, _ in found if piano in _MAPS_TEST}
    tracks, overlap = [], 0
    for piece, piano, audio, truth in found:
        if truth is None:
            continue
        if piano not in _MAPS_TEST and piece in tested:
            overlap += (
                1  # the same piece in training and test would flatter (Hawthorne et al. 2018)
            )
            continue
        split = "test" if piano in _MAPS_TEST else "train"
        tracks.append(Track(audio.stem, split, audio, _reader(truth)))
    left_out = _missing(missing, "needed beside the recordings")
    if overlap:
        left_out += (f"{overlap} training recordings of pieces that are in the test split.",)
    return Layout(tuple(tracks), left_out)


def _guitarset(root: Path) -> Layout:
    tracks, missing = [], []
    for jams in sorted(root.rglob("*.jams")):
        match = _GUITARSET_NAME.match(jams.stem)
        if not match:
            continue
        base = jams.parent.parent
        audio = _first(
            base / "audio_mono-mic" / f"{jams.stem}_mic.wav",
            base / "audio_mono-pickup_mix" / f"{jams.stem}_mix.wav",
        )
        if audio is None:
            missing.append(f"audio_mono-mic/{jams.stem}_mic.wav")
            continue
        # GuitarSet has no official split; MT3 keeps the third progression of each style apart.
        split = "valid" if match["progression"] == "3" else "train"
        tracks.append(Track(jams.stem, split, audio, _jams_reader(jams)))
    return Layout(tuple(tracks), _missing(missing, "needed for the annotations"))


def _slakh(root: Path) -> Layout:
    tracks, missing, omitted = [], [], 0
    for folder in sorted(p for p in root.rglob("Track*") if p.is_dir()):
        if folder.parent.name == "omitted":
            omitted += 1
            continue
        audio = _in_any_format(folder / "mix.flac")
        parts = sorted((folder / "MIDI").glob("S*.mid"))
        stems = {p.stem for p in (folder / "stems").glob("S*")}
        # Some parts were never synthesised; only those that have a stem are in the mix.
        parts = [p for p in parts if not stems or p.stem in stems]
        if audio is None or not parts:
            missing.append(f"{folder.name}/{'mix.flac' if audio is None else 'MIDI'}")
            continue
        tracks.append(Track(folder.name, _split(folder.parent.name), audio, _parts_reader(parts)))
    left_out = _missing(missing, "of Slakh")
    if omitted:
        left_out += (f"{omitted} tracks that Slakh's redux marks as duplicates (omitted).",)
    return Layout(tuple(tracks), left_out)


def _folder(root: Path) -> Layout:
    tracks = []
    for name, audio, truth in pair_recordings(root):
        first = name.split("/")[0]
        split = _split(first) if "/" in name and _split(first) in ("valid", "test") else "train"
        tracks.append(Track(name, split, audio, _reader(truth)))
    hint = () if tracks else ("Expected pairs such as piece.wav and piece.mid.",)
    return Layout(tuple(tracks), hint)


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "maestro": _maestro,
    "maps": _maps,
    "guitarset": _guitarset,
    "slakh": _slakh,
    "groove": _groove,
    "folder": _folder,
}


# --- mirdata ------------------------------------------------------------------------------------


def _mirdata(name: str, root: Path) -> Layout:
    try:
        import mirdata
    except ImportError as error:
        raise MissingDependencyError(
            "datasets by mirdata:NAME need the package mirdata: pip install 'musicjax[datasets]'."
        ) from error
    if name not in mirdata.list_datasets():
        raise DataError(f"mirdata knows no dataset {name!r}; mirdata.list_datasets() names them.")
    dataset = mirdata.initialize(name, data_home=str(root))
    try:
        loaded = dataset.load_tracks()
    except FileNotFoundError as error:
        raise DataError(
            f"mirdata cannot list {name} below {root} ({error}); its index is fetched once with "
            f"mirdata.initialize({name!r}).download(['index'])."
        ) from error
    tracks, missing, without = [], [], 0
    for key, track in loaded.items():
        audio = getattr(track, "audio_path", None) or getattr(track, "audio_mic_path", None)
        attribute = next((a for a in _NOTE_ATTRIBUTES if hasattr(type(track), a)), None)
        if attribute is None or audio is None:
            without += 1
        elif not Path(audio).is_file():
            missing.append(str(Path(audio).relative_to(root)))
        else:
            split = _split(str(getattr(track, "split", "train")))
            tracks.append(Track(key, split, Path(audio), _mirdata_reader(track, attribute)))
    if not tracks:
        raise DataError(
            f"no recording with notes of {name} is below {root}: {len(missing)} recordings are "
            f"missing and {without} have no notes in mirdata."
        )
    left_out = _missing(missing, "of mirdata's index")
    if without:
        left_out += (f"{without} tracks without notes.",)
    return Layout(tuple(tracks), left_out)


# Where mirdata's loaders keep notes, the most complete first.
_NOTE_ATTRIBUTES = ("notes_all", "notes", "notes_a1", "score", "midi", "notes_pyin")


def _mirdata_reader(track: Any, attribute: str) -> Callable[[], Notes]:
    def read() -> Notes:
        data = getattr(track, attribute)
        if data is None:
            return Notes.empty()
        if hasattr(data, "instruments"):  # a pretty_midi.PrettyMIDI
            return read_midi(track.midi_path)
        from librosa import hz_to_midi, note_to_midi

        pitch = data.pitches
        if data.pitch_unit == "hz":
            pitch = hz_to_midi(pitch)
        elif data.pitch_unit == "note_name":
            pitch = note_to_midi(pitch)
        pitch = np.clip(np.rint(pitch), 0, 127).astype(int)
        start, end = np.asarray(data.intervals, float).T
        return Notes.from_arrays(start, np.maximum(end, start), pitch).sorted()

    return read


# --- Files --------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[], Notes]:
    return lambda: read_notes(path)


def _parts_reader(paths: list[Path]) -> Callable[[], Notes]:
    return lambda: Notes.concat([read_midi(path) for path in paths]).sorted()


def _jams_reader(path: Path) -> Callable[[], Notes]:
    def read() -> Notes:
        try:
            annotations = json.loads(path.read_text())["annotations"]
            data = [a["data"] for a in annotations if a["namespace"] in ("note_midi", "pitch_midi")]
            events = [(e["time"], e["duration"], e["value"]) for part in data for e in part]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a JAMS file with note_midi annotations.") from error
        if not events:
            return Notes.empty()
        start, length, pitch = np.asarray(events, float).T
        return Notes.from_arrays(
            start, start + length, np.rint(pitch).astype(int), program=_NYLON_GUITAR
        ).sorted()

    return read


def _one_file(root: Path, pattern: str, what: str) -> Path:
    found = sorted([*root.glob(pattern), *root.glob(f"*/{pattern}")])
    if not found:
        raise DataError(
            f"{what} is not in {root}: give the folder that the dataset was unpacked to."
        )
    return found[-1]  # the newest version


def _read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [c for c in columns if not rows or c not in rows[0]]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: is it the dataset's own table?"
        )
    return rows


def _in_any_format(path: Path) -> Path | None:
    return _first(path, *(path.with_suffix(suffix) for suffix in AUDIO_SUFFIXES))


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _split(name: str) -> str:
    return _SPLIT_NAMES.get(name.lower(), name.lower())


def _missing(names: list[str], what: str) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"{len(names)} files {what} are missing, the first is {names[0]}.",)
