"""Imports: each dataset in its own layout, its official split, a sentence for what is missing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicjax.data.imports import cut, import_dataset
from musicjax.data.layouts import find_tracks
from musicjax.data.records import Example, RecordSource
from musicjax.errors import DataError
from musicjax.notes import Notes, Pedal, write_midi

RATE = 8000
SECONDS = 5


def notes_of(number: int, program: int = 0, is_drum: bool = False) -> Notes:
    onset_s = 0.5 + np.arange(4)
    pitch = 40 + number + np.arange(4)
    return Notes.from_arrays(onset_s, onset_s + 0.4, pitch, 70, program, is_drum)


def put_audio(path: Path, seconds: float = SECONDS, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 330 * time), rate)


def put_midi(path: Path, number: int, **kind: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(notes_of(number, **kind), path)


def put_table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def bring_in(dataset: str, root: Path, out: Path, **options: object):
    return import_dataset(dataset, root, out, sample_rate=RATE, **options)


def pitches(folder: Path) -> list[int]:
    return sorted(int(e.notes.pitch.min()) for e in RecordSource(folder).examples())


@pytest.fixture
def maestro(tmp_path: Path) -> Path:
    root = tmp_path / "maestro-v3.0.0"
    rows = []
    for i, split in enumerate(("train", "train", "validation", "test")):
        stem = f"20{i:02d}/piece_{i}"
        put_audio(root / f"{stem}.wav")
        put_midi(root / f"{stem}.midi", i)
        names = {"midi_filename": f"{stem}.midi", "audio_filename": f"{stem}.wav"}
        rows.append({"canonical_composer": "N.N.", "split": split, "year": 2000 + i} | names)
    put_table(root / "maestro-v3.0.0.csv", rows)
    return tmp_path


def test_maestro(maestro: Path, tmp_path: Path) -> None:
    seen = []
    outcome = bring_in(
        "maestro",
        maestro,
        tmp_path / "out",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert outcome.examples == {"train": 2, "valid": 1, "test": 1} and not outcome.left_out
    assert seen[-1] == (4, 4)
    assert pitches(tmp_path / "out" / "train") == [40, 41]
    example = next(RecordSource(tmp_path / "out" / "test").examples())
    assert example.sample_rate == RATE and example.duration_s == SECONDS
    np.testing.assert_allclose(example.notes.onset_s, notes_of(3).onset_s, atol=1e-3)
    tone = np.abs(np.fft.rfft(example.samples[:RATE])).argmax()
    assert tone == 330


def test_missing_recordings_are_named_and_the_rest_is_done(maestro: Path, tmp_path: Path) -> None:
    (maestro / "maestro-v3.0.0" / "2001" / "piece_1.wav").unlink()
    outcome = bring_in("maestro", maestro, tmp_path / "out")
    assert outcome.examples == {"train": 1, "valid": 1, "test": 1}
    assert "1 files listed in maestro-v3.0.0.csv are missing" in outcome.left_out[0]
    assert "2001/piece_1.wav" in outcome.left_out[0]


def test_unreadable_recordings_are_named_and_the_rest_is_done(
    maestro: Path, tmp_path: Path
) -> None:
    (maestro / "maestro-v3.0.0" / "2000" / "piece_0.wav").write_bytes(b"not audio at all")
    (maestro / "maestro-v3.0.0" / "2003" / "piece_3.midi").write_bytes(b"not midi")
    outcome = bring_in("maestro", maestro, tmp_path / "out")
    assert outcome.examples == {"train": 1, "valid": 1}
    assert any("piece_0" in line for line in outcome.left_out)
    assert any("piece_3" in line for line in outcome.left_out)
    (maestro / "maestro-v3.0.0" / "2003" / "piece_3.midi").unlink()
    put_midi(maestro / "maestro-v3.0.0" / "2003" / "piece_3.midi", 3)
    again = bring_in("maestro", maestro, tmp_path / "out")
    assert again.examples == {"train": 1, "valid": 1, "test": 1}


def test_an_import_is_taken_up_and_never_mixed(maestro: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bring_in("maestro", maestro, out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.array_record")}
    gone = out / "test" / "part-00000.array_record"
    gone.unlink()
    bring_in("maestro", maestro, out)
    assert gone.exists()
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items() if p != gone)
    with pytest.raises(DataError, match="other options"):
        bring_in("maestro", maestro, out, excerpt_s=2.0)
    (out / "corpus.json").unlink()
    with pytest.raises(DataError, match="were not imported here"):
        bring_in("maestro", maestro, out)


def test_one_split_alone(maestro: Path, tmp_path: Path) -> None:
    outcome = bring_in("maestro", maestro, tmp_path / "out", splits=("test",))
    assert outcome.examples == {"test": 1}
    with pytest.raises(DataError, match="none of"):
        bring_in("maestro", maestro, tmp_path / "other", splits=("dev",))


def test_maps_keeps_the_disklaviers_and_their_pieces_apart(tmp_path: Path) -> None:
    root = tmp_path / "MAPS"
    rows = [("ENSTDkCl", "chpn_op25"), ("AkPnBcht", "chpn_op25"), ("AkPnBcht", "bk_xmas1")]
    for i, (piano, piece) in enumerate(rows):
        stem = root / piano / "MUS" / f"MAPS_MUS-{piece}_{piano}"
        put_audio(stem.with_suffix(".wav"))
        lines = ["OnsetTime\tOffsetTime\tMidiPitch"]
        lines += [f"{n.onset_s}\t{n.offset_s}\t{n.pitch}" for n in notes_of(i)]
        stem.with_suffix(".txt").write_text("\n".join(lines) + "\n\n")
    put_audio(root / "AkPnBcht" / "ISOL" / "MAPS_ISOL_x_AkPnBcht.wav")
    outcome = bring_in("maps", root, tmp_path / "out")
    assert outcome.examples == {"train": 1, "test": 1}
    assert pitches(tmp_path / "out" / "test") == [40] and pitches(tmp_path / "out" / "train") == [
        42
    ]
    assert "in the test split" in outcome.left_out[0]


def test_guitarset(tmp_path: Path) -> None:
    root = tmp_path / "guitarset"
    (root / "annotation").mkdir(parents=True)
    for i, name in enumerate(("00_BN1-129-Eb_comp", "01_Jazz3-150-C_solo", "02_Rock2-85-F_comp")):
        strings = []
        for string in range(6):
            data = [{"time": 0.5 + string / 10, "duration": 0.3, "value": 50.2 + i + string}]
            strings.append({"namespace": "note_midi", "data": data})
        strings.append({"namespace": "chord", "data": [{"time": 0, "duration": 1, "value": "C"}]})
        (root / "annotation" / f"{name}.jams").write_text(json.dumps({"annotations": strings}))
        if i < 2:
            put_audio(root / "audio_mono-mic" / f"{name}_mic.wav")
    outcome = bring_in("guitarset", root, tmp_path / "out")
    assert outcome.examples == {"train": 1, "valid": 1}
    assert "02_Rock2-85-F_comp_mic.wav" in outcome.left_out[0]
    example = next(RecordSource(tmp_path / "out" / "valid").examples())
    assert example.notes.pitch.tolist() == [51, 52, 53, 54, 55, 56]
    assert set(example.notes.program.tolist()) == {24}


def test_slakh_hears_only_the_stems_that_were_made(tmp_path: Path) -> None:
    root = tmp_path / "slakh2100_flac_redux"
    for split, name in (
        ("train", "Track00001"),
        ("validation", "Track01501"),
        ("omitted", "Track9"),
    ):
        folder = root / split / name
        put_audio(folder / "mix.flac")
        put_midi(folder / "MIDI" / "S00.mid", 0, program=33)
        put_midi(folder / "MIDI" / "S01.mid", 10, is_drum=True)
        put_midi(folder / "MIDI" / "S02.mid", 20, program=81)
        for stem in ("S00", "S01"):
            put_audio(folder / "stems" / f"{stem}.flac", 0.1)
    outcome = bring_in("slakh", tmp_path, tmp_path / "out")
    assert outcome.examples == {"train": 1, "valid": 1}
    assert "1 tracks" in outcome.left_out[0]
    notes = next(RecordSource(tmp_path / "out" / "valid").examples()).notes
    assert len(notes) == 8 and notes.is_drum.sum() == 4
    assert set(notes.program[~notes.is_drum].tolist()) == {33}


def test_groove(tmp_path: Path) -> None:
    root = tmp_path / "groove"
    rows = []
    for i, split in enumerate(("train", "test", "validation")):
        stem = f"drummer{i}/session1/{i}_funk_100_beat_4-4"
        put_midi(root / f"{stem}.mid", i, is_drum=True)
        audio = f"{stem}.wav" if i < 2 else ""
        if audio:
            put_audio(root / audio)
        rows.append(
            {"drummer": i, "midi_filename": f"{stem}.mid", "audio_filename": audio, "split": split}
        )
    put_table(root / "info.csv", rows)
    outcome = bring_in("groove", tmp_path, tmp_path / "out")
    assert outcome.examples == {"train": 1, "test": 1}
    assert "without audio" in outcome.left_out[0]
    assert next(RecordSource(tmp_path / "out" / "test").examples()).notes.is_drum.all()


def test_a_folder_of_recordings(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for i, name in enumerate(("a", "b", "test/c")):
        put_audio(root / f"{name}.flac")
        put_midi(root / f"{name}.mid", i)
    outcome = bring_in("folder", root, tmp_path / "out")
    assert outcome.examples == {"train": 2, "test": 1}


def test_what_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        bring_in("maestro", tmp_path / "absent", tmp_path / "out")
    with pytest.raises(DataError, match="expected maestro, maps"):
        bring_in("meastro", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="table maestro"):
        bring_in("maestro", tmp_path, tmp_path / "out")
    for name in ("maps", "guitarset", "slakh", "folder"):
        with pytest.raises(DataError, match="no recording with notes"):
            bring_in(name, tmp_path, tmp_path / "out")
    (tmp_path / "info.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no column split"):
        bring_in("groove", tmp_path, tmp_path / "out")


def test_training_recordings_are_cut_without_losing_what_sounds(
    example_of: Callable[..., Example],
) -> None:
    samples = np.arange(10 * RATE, dtype=np.int64).astype(np.int16)
    pedal = Pedal.from_arrays([3.0, 6.5], [127, 0])
    notes = Notes.from_arrays(
        [0.5, 3.5, 5.0, 8.2], [1.0, 3.7, 5.2, 9.9], [60, 62, 64, 65], pedal=pedal
    )
    whole = Example("x", RATE, samples, notes)
    parts = list(cut(whole, 4.5))
    assert [len(p.samples) / RATE for p in parts] == [4.5, 5.5]
    np.testing.assert_array_equal(np.concatenate([p.samples for p in parts]), samples)
    first, second = (p.notes for p in parts)
    assert first.pitch.tolist() == [60, 62]
    # The second note's key is up before the cut, but the pedal holds it into the next excerpt.
    assert second.pitch.tolist() == [62, 64, 65]
    np.testing.assert_allclose(second.onset_s, [-1.0, 0.5, 3.7])
    np.testing.assert_allclose(second.sustained().offset_s, [2.0, 2.0, 5.4])
    assert list(cut(whole, None)) == [whole] and len(list(cut(whole, 9.0))) == 1


def test_other_datasets_come_through_mirdata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mirdata", reason="pip install 'musicjax[datasets]'")
    from mirdata import core

    files = {"audio": "Audio/v_1.wav", "notesA1": "Annotations/v_1_notesA1.csv"}
    files |= {"f0": None, "notesA2": None, "lyrics": None}
    index = {"version": "1", "tracks": {"1": {key: [name, None] for key, name in files.items()}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    root = tmp_path / "vocadito"
    put_audio(root / "Audio" / "v_1.wav")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "v_1_notesA1.csv").write_text("0.5,440.0,0.3\n1.5,220.0,0.25\n")
    with pytest.raises(DataError, match="index"):
        find_tracks("mirdata:vocadito", root)
    monkeypatch.setattr(core.Index, "get_path", lambda self: str(tmp_path / "index.json"))
    outcome = bring_in("mirdata:vocadito", root, tmp_path / "out")
    assert outcome.examples == {"train": 1}
    notes = next(RecordSource(tmp_path / "out" / "train").examples()).notes
    assert notes.pitch.tolist() == [69, 57]
    np.testing.assert_allclose(notes.offset_s, [0.8, 1.75], atol=1e-6)
    (root / "Audio" / "v_1.wav").unlink()
    with pytest.raises(DataError, match="1 recordings are missing"):
        find_tracks("mirdata:vocadito", root)
    with pytest.raises(DataError, match="knows no dataset"):
        find_tracks("mirdata:nothing", root)
