"""Rendering: the same everywhere, resumable, with notes where the sound is."""

import dataclasses
import io
import json
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from musicjax.data import fluidsynth
from musicjax.data.corpora import find_scores, folder_source
from musicjax.data.instruments import expand_instruments, open_bank, play
from musicjax.data.pipeline import examples
from musicjax.data.records import RecordSource
from musicjax.data.render import RenderConfig, Repertoire, as_piano, render_corpus, render_example
from musicjax.errors import ConfigError, DataError, MusicJaxError
from musicjax.notes import Notes, midi_bytes, write_csv, write_midi

RATE = 16000
ONE_PIANO = "modelled:1"  # its tones stay in memory from test to test


def piece(seed: int = 0, count: int = 12) -> Notes:
    rng = np.random.default_rng(seed)
    onset_s = 0.3 * np.arange(count)
    return Notes.from_arrays(onset_s, onset_s + 0.25, rng.integers(58, 66, count), 80)


@pytest.fixture
def midi(tmp_path: Path) -> Path:
    folder = tmp_path / "midi"
    folder.mkdir()
    for i in range(3):
        write_midi(piece(i), folder / f"{i}.mid")
    return folder


@pytest.fixture
def config(tmp_path: Path, midi: Path) -> RenderConfig:
    return RenderConfig(
        out=tmp_path / "out",
        midi=(str(midi),),
        split="all",
        instruments=(ONE_PIANO,),
        hours=6 * 2 / 3600,
        excerpt_s=2.0,
        shard_size=2,
        processes=1,
    )


def contents(folder: Path) -> list[tuple[str, bytes, Notes]]:
    return [(e.id, e.samples.tobytes(), e.notes) for e in RecordSource(folder).examples()]


def test_an_example_follows_from_its_number_alone(config: RenderConfig) -> None:
    repertoire = Repertoire.find(config)
    one = render_example(repertoire, 4)
    render_example(repertoire, 0)
    again = render_example(Repertoire.find(config), 4)
    np.testing.assert_array_equal(one.samples, again.samples)
    assert one.notes == again.notes and one.id == again.id
    other = render_example(repertoire, 5)
    assert other.notes != one.notes
    assert len(one.samples) == 2 * RATE and np.abs(one.samples).max() > 20000


def test_a_stopped_job_goes_on_and_ends_the_same(config: RenderConfig, tmp_path: Path) -> None:
    render_corpus(config)
    whole = contents(config.out)
    assert len(whole) == 6 and len(list(config.out.glob("*.array_record"))) == 3

    stopped = dataclasses.replace(config, out=tmp_path / "stopped")

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_corpus(stopped, interrupt)
    shards = sorted(stopped.out.glob("*.array_record"))
    assert [s.name for s in shards] == ["part-00000.array_record"]
    assert not list(stopped.out.glob(".*part")), "a half-written shard was left"
    written = shards[0].stat().st_mtime_ns

    seen = []
    assert render_corpus(stopped, lambda done, total: seen.append((done, total))) == 6
    assert seen[0] == (2, 6) and seen[-1] == (6, 6)
    assert shards[0].stat().st_mtime_ns == written, "a finished shard was rendered again"
    assert contents(stopped.out) == whole


KILLED = """
import os, pickle, signal, sys
from musicjax.data.render import render_corpus

def kill(done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

render_corpus(pickle.loads(bytes.fromhex(sys.argv[1])), kill)
"""


def test_a_killed_job_goes_on_and_ends_the_same(config: RenderConfig, tmp_path: Path) -> None:
    killed = dataclasses.replace(config, out=tmp_path / "killed", hours=4 * 2 / 3600)
    argument = pickle.dumps(killed).hex()
    done = subprocess.run([sys.executable, "-c", KILLED, argument], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [s.name for s in killed.out.glob("*.array_record")] == ["part-00000.array_record"]
    assert not json.loads((killed.out / "corpus.json").read_text())["complete"]
    render_corpus(killed)
    whole = dataclasses.replace(killed, out=tmp_path / "whole")
    render_corpus(whole)
    assert contents(killed.out) == contents(whole.out)
    assert {p.name for p in killed.out.iterdir()} == {p.name for p in whole.out.iterdir()}


def test_more_hours_add_to_a_corpus(config: RenderConfig) -> None:
    short = dataclasses.replace(config, hours=3 * 2 / 3600)
    render_corpus(short)
    first = contents(config.out)
    render_corpus(config)
    assert len(first) == 3 and contents(config.out)[:3] == first


def test_processes_render_the_same(config: RenderConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, hours=4 * 2 / 3600)
    render_corpus(config)
    spread = dataclasses.replace(config, out=tmp_path / "spread", processes=2)
    render_corpus(spread)
    assert contents(spread.out) == contents(config.out)


def test_files_can_be_played_as_written_and_in_rooms(config: RenderConfig) -> None:
    config = dataclasses.replace(config, as_written=True, excerpt_s=5.0)
    dry = render_example(Repertoire.find(config), 0)
    written = {tuple(find_scores(config.midi[0])[i].read().pitch.tolist()) for i in range(3)}
    assert tuple(dry.notes.pitch.tolist()) in written
    wet = render_example(Repertoire.find(dataclasses.replace(config, augmented=True)), 0)
    assert wet.notes.pitch.tolist() == dry.notes.pitch.tolist()
    assert not np.array_equal(wet.samples, dry.samples)


def test_another_configuration_in_the_same_folder_is_refused(config: RenderConfig) -> None:
    render_corpus(dataclasses.replace(config, hours=2 / 3600))
    for change in ({"seed": 1}, {"excerpt_s": 3.0}, {"augmented": True}):
        with pytest.raises(DataError, match="with other options"):
            render_corpus(dataclasses.replace(config, **change))
    (config.out / "corpus.json").unlink()
    with pytest.raises(DataError, match="were not rendered here"):
        render_corpus(config)


def test_one_damaged_file_does_not_end_the_job(config: RenderConfig, midi: Path) -> None:
    (midi / "damaged.mid").write_bytes(b"MThd nonsense")
    repertoire = Repertoire.find(config)
    ids = [render_example(repertoire, i).id for i in range(6)]
    assert not any("damaged" in name for name in ids)
    only_damaged = dataclasses.replace(config, midi=(str(midi / "damaged.mid"),))
    with pytest.raises(DataError, match="damaged"):
        render_example(Repertoire.find(only_damaged), 0)


def onset_errors_ms(notes: Notes, samples: np.ndarray) -> np.ndarray:
    """For notes that stand apart: when the sound passes a tenth of its peak, against the onset."""
    errors = []
    for note in notes:
        start = round(note.onset_s * RATE)
        part = np.abs(samples[start - RATE // 50 : start + RATE // 5])
        errors.append((np.argmax(part > 0.1 * part.max()) - RATE // 50) / RATE * 1000)
    return np.array(errors)


SEPARATE = Notes.from_arrays(
    0.5 + 0.8 * np.arange(6), 0.9 + 0.8 * np.arange(6), [33, 45, 57, 69, 81, 93], 90
)


def test_modelled_pianos_sound_where_their_notes_are() -> None:
    samples = play(SEPARATE, ONE_PIANO, RATE, np.random.default_rng(0))
    errors = onset_errors_ms(SEPARATE, samples)
    assert errors.min() > -3 and errors.max() < 8


needs_fluidsynth = pytest.mark.skipif(
    not fluidsynth.available(), reason="FluidSynth is not installed (apt install fluidsynth)"
)


@pytest.fixture(scope="module")
def font() -> str:
    """The smallest sound font of the system that plays a piano."""
    found = sorted(Path("/usr/share/sounds").rglob("*.sf2"), key=lambda p: p.stat().st_size)
    for path in found:
        try:
            fluidsynth.synthesize(piece(count=1), path, RATE)
        except MusicJaxError:
            continue
        return str(path)
    pytest.skip(
        "no sound font with a piano below /usr/share/sounds (apt install timgm6mb-soundfont)"
    )


@needs_fluidsynth
def test_sound_fonts_sound_where_their_notes_are(font: str) -> None:
    samples = play(SEPARATE, font, RATE, np.random.default_rng(0))
    errors = onset_errors_ms(SEPARATE, samples)
    assert errors.min() > -3 and errors.max() < 8
    assert len(samples) / RATE == pytest.approx(SEPARATE.duration_s + 1.5, abs=0.01)


@needs_fluidsynth
def test_sound_fonts_play_the_same_twice_and_obey_the_pedal(font: str) -> None:
    from musicjax.notes import Pedal

    note = Notes.from_arrays([0.1], [0.3], [60])
    held = dataclasses.replace(note, pedal=Pedal.from_arrays([0.0, 1.5], [127, 0]))
    rng = np.random.default_rng
    one, again = (play(held, font, RATE, rng(1), reverb_chance=1.0) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    dry = fluidsynth.synthesize(note, font, RATE)
    wet = fluidsynth.synthesize(held, font, RATE)
    later = slice(round(0.9 * RATE), round(1.4 * RATE))
    assert np.abs(wet[later]).max() > 10 * np.abs(dry[later]).max()


@needs_fluidsynth
def test_what_fluidsynth_cannot_play_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sound font at"):
        fluidsynth.synthesize(piece(), tmp_path / "absent.sf2")
    (tmp_path / "fake.sf2").write_bytes(b"RIFF nonsense" * 20)
    with pytest.raises(DataError, match="FluidSynth cannot read"):
        fluidsynth.synthesize(piece(), tmp_path / "fake.sf2")


def test_without_fluidsynth_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "any.sf2").write_bytes(b"RIFF")
    monkeypatch.setattr(fluidsynth, "_library_name", lambda: None)
    fluidsynth._library.cache_clear()
    with pytest.raises(MusicJaxError, match="apt install fluidsynth"):
        fluidsynth.synthesize(piece(), tmp_path / "any.sf2")


def test_a_piano_plays_all_pitched_parts() -> None:
    band = Notes.from_arrays(
        [0.0, 0.01, 0.5, 0.6], [1.0, 0.4, 0.9, 0.7], [60, 60, 43, 38], 80, [0, 65, 33, 0],
        [False, False, False, True],
    )  # fmt: skip
    notes = as_piano(band)
    assert notes.pitch.tolist() == [60, 43] and not notes.program.any() and not notes.is_drum.any()


def font_with(presets: list[tuple[int, int]]) -> bytes:
    """A sound font of nothing but its table of presets: (program, bank)."""
    rows = [struct.pack("<20sHH14x", b"preset", *preset) for preset in [*presets, (0, 0)]]
    table = struct.pack("<4sI", b"phdr", 38 * len(rows)) + b"".join(rows)
    info = struct.pack("<4sI4s", b"LIST", 7, b"INFO") + b"xyz" + b"\0"  # odd, so padded
    data = info + struct.pack("<4sI4s", b"LIST", 4 + len(table), b"pdta") + table
    return struct.pack("<4sI4s", b"RIFF", 4 + len(data), b"sfbk") + data


def test_instruments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        expand_instruments(("absent.sf2",))
    with pytest.raises(DataError, match="no sound font"):
        expand_instruments((str(tmp_path),))
    with pytest.raises(DataError, match="no folder"):
        expand_instruments((f"bank:{tmp_path / 'absent'}",))
    (tmp_path / "deep").mkdir()
    for name, presets in (("b.sf2", [(0, 0)]), ("deep/a.sf3", [(1, 0), (0, 8)])):
        (tmp_path / name).write_bytes(font_with(presets))
    assert [Path(p).name for p in expand_instruments((str(tmp_path), "modelled:"))] == [
        "b.sf2",
        "a.sf3",
        "modelled:",
    ]
    assert [Path(p).name for p in expand_instruments((str(tmp_path),), (0,))] == ["b.sf2"]
    with pytest.raises(DataError, match="none of the programs"):
        expand_instruments((str(tmp_path / "deep" / "a.sf3"),), (0, 5))
    (tmp_path / "c.sf2").write_bytes(b"no font")
    with pytest.raises(DataError, match="not a sound font"):
        expand_instruments((str(tmp_path / "c.sf2"),), (0,))
    with pytest.raises(DataError):
        open_bank(f"bank:{tmp_path}", RATE)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for wrong in ({"split": "dev"}, {"hours": 0.0}, {"weights": (1.0, 2.0)}):
        with pytest.raises(ConfigError):
            RenderConfig(out=tmp_path, **wrong)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """An archive in the layout of a corpus, with one member that would leave its folder."""
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "own_train.txt").write_text("own/a.mid\nown/b.mid\n")
    (tmp_path / "splits" / "own_test.txt").write_text("own/absent.mid\n")
    with tarfile.open(tmp_path / "own.tar.gz", "w:gz") as tar:
        for i, name in enumerate(("own/a.mid", "own/b.mid", "own/c.mid", "../outside.mid")):
            data = midi_bytes(piece(i))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return tmp_path / "own.tar.gz"


def test_corpora_are_read_by_split_and_never_unpacked(corpus: Path) -> None:
    scores = find_scores(corpus, "train")
    assert [s.member for s in scores] == ["own/a.mid", "own/b.mid"]
    assert scores[1].read() == score_of(1)
    assert len(find_scores(corpus, "all")) == 4
    assert not (corpus.parent.parent / "outside.mid").exists()
    with pytest.raises(DataError, match="absent"):
        find_scores(corpus, "test")
    with pytest.raises(DataError, match="has no valid split"):
        find_scores(corpus, "valid")


def score_of(number: int) -> Notes:
    from musicjax.notes import parse_midi

    return parse_midi(midi_bytes(piece(number)), "piece")


def test_folders_lists_and_files_of_scores(midi: Path, tmp_path: Path) -> None:
    assert len(find_scores(midi)) == 3 and len(find_scores(midi / "1.mid")) == 1
    (tmp_path / "list.txt").write_text("# two pieces\nmidi/0.mid\n\nmidi/2.mid\n")
    assert [Path(s.path).name for s in find_scores(tmp_path / "list.txt")] == ["0.mid", "2.mid"]
    with pytest.raises(DataError, match="has no split 'train'"):
        find_scores(midi, "train")
    (midi / "train").mkdir()
    write_midi(piece(7), midi / "train" / "x.mid")
    assert [s.id for s in find_scores(midi, "train")] == ["train/x"]
    (tmp_path / "wrong.txt").write_text("midi/absent.mid")
    with pytest.raises(DataError, match=r"lists .*absent\.mid"):
        find_scores(tmp_path / "wrong.txt")
    with pytest.raises(DataError, match="does not exist"):
        find_scores(tmp_path / "absent")
    (tmp_path / "broken.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not a complete archive"):
        find_scores(tmp_path / "broken.tar.gz")


def test_recordings_in_a_folder_are_read_in_parts(tmp_path: Path) -> None:
    import soundfile

    time = np.arange(3 * 44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time * (1 + time / 10))
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], axis=1), 44100)
    soundfile.write(tmp_path / "b.flac", tone, 44100)
    soundfile.write(tmp_path / "without.flac", tone, 44100)
    write_midi(piece(), tmp_path / "a.mid")
    write_csv(piece(), tmp_path / "b.csv")
    source = folder_source(tmp_path, RATE)
    assert [r.id for r in source] == ["a", "b"]
    for recording in source:
        assert recording.num_samples == 3 * RATE and len(recording.notes) == 12
        whole = recording.example().samples.astype(int)
        part = recording.crop(20_000, 9000).astype(int)
        assert len(part) == 9000
        assert np.abs(part - whole[20_000:29_000]).max() < 40  # the resampler starts elsewhere
    assert [r.id for r in folder_source(tmp_path / "*.flac", RATE)] == ["b"]
    assert [e.id for e in examples((str(tmp_path / "a.wav"), str(tmp_path)), RATE)] == [
        "a",
        "a",
        "b",
    ]
    with pytest.raises(DataError, match="no recording with notes"):
        folder_source(tmp_path / "nothing")
