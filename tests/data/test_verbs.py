"""`musicjax data …`: options reach the configuration, results reach the disk and the terminal."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicjax.data import RecordSource, command, verbs
from musicjax.errors import ConfigError, DataError, OutputError
from musicjax.notes import Notes, read_midi, write_midi


def test_compose_writes_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pieces"
    options = ["--out", str(out), "--count", "2", "--seconds", "4", "--style", "song"]
    done = command("compose", options)
    assert done.facts == {"pieces": 2, "out": str(out)}
    assert done.lines == [f"2 pieces in {out}"]
    assert [len(read_midi(out / f"piece-000{i}.mid")) > 0 for i in range(2)] == [True, True]
    assert capsys.readouterr() == ("", "")


def test_render_writes_records(tmp_path: Path) -> None:
    out = tmp_path / "records"
    options = ["--out", str(out), "--hours", "0.0005", "--excerpt-s", "1", "--processes", "1"]
    done = command("render", [*options, "--performance.tempo", "1.0", "1.0"])
    assert len(RecordSource(out)) == done.facts["examples"] == 2
    assert done.lines[0].startswith("2 examples")


@pytest.mark.parametrize("action", ["render", "import", "compose"])
def test_help_shows_examples(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(action, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "--out" in text


def test_import_takes_its_dataset_and_folder_without_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []
    actions = verbs._actions()
    config_type, _ = actions["import"]
    done = verbs.Outcome({}, [])
    monkeypatch.setattr(
        verbs, "_actions", lambda: {"import": (config_type, lambda c: given.append(c) or done)}
    )
    command("import", ["maestro", "here"])
    command("import", ["maestro", "here", "there", "--codec", "pcm16"])
    command("import", ["mirdata:x", "here", "--out", "there"])
    command("import", ["--dataset", "maps", "--root", "here", "--out", "there"])
    found = [(c.dataset, str(c.root), str(c.out)) for c in given]
    assert found == [
        ("maestro", "here", "data/maestro"),
        ("maestro", "here", "there"),
        ("mirdata:x", "here", "there"),
        ("maps", "here", "there"),
    ]


@pytest.mark.parametrize("action", ["render", "import", "compose"])
def test_a_folder_that_cannot_be_made_is_told_and_nothing_else(
    action: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_pair(tmp_path / "own")
    (tmp_path / "text.wav").write_text("words")
    given = ["folder", str(tmp_path / "own")] if action == "import" else []
    with pytest.raises(OutputError, match=r"cannot make the folder .*text\.wav/x \(not a dir"):
        command(action, [*given, "--out", str(tmp_path / "text.wav/x")])
    assert capfd.readouterr() == ("", "")


def test_errors_have_no_empty_line_before_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="gone"):
        command("render", ["--out", str(tmp_path / "x"), "--midi", str(tmp_path / "gone")])
    with pytest.raises(ConfigError, match=r"read: Unrecognized options: stray\. `--help`"):
        command("compose", ["--out", "x", "stray"])
    with pytest.raises(ConfigError, match=r"--count: invalid literal .* '1\.5'\. `--help`"):
        command("compose", ["--out", "x", "--count", "1.5"])
    assert capfd.readouterr() == ("", "")


def put_pair(folder: Path) -> None:
    """A recording with its notes."""
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(8000, np.float32), 8000)
    write_midi(Notes.from_arrays([0.1], [0.5], [60]), folder / "a.mid")
