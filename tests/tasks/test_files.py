"""Where results go is settled before any work; what became of each recording is told."""

import pytest

from musicjax.errors import OutputError
from musicjax.tasks.files import plan


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def places(*args, **kwargs):
    return [[str(o) for o in job.outputs] for job in plan(*args, **kwargs)]


def test_a_file_a_folder_or_the_current_folder(tmp_path):
    assert places(["x/a.flac"], ["b.mid"]) == [["b.mid"]]
    assert places(["x/a.flac"], ["b.mid", "c.png"]) == [["b.mid", "c.png"]]
    assert places(["x/a.flac"], []) == [["a.mid"]]
    assert places(["a.flac", "b.mp3"], ["out"], ("mid", "csv")) == [
        ["out/a.mid", "out/a.csv"],
        ["out/b.mid", "out/b.csv"],
    ]
    assert (tmp_path / "out").is_dir()
    assert places(["a.flac"], ["deep/er.v2/"]) == [["deep/er.v2/a.mid"]]


def test_several_recordings_do_not_share_a_file():
    with pytest.raises(OutputError, match=r"a.flac and b.flac would both be written to x.mid"):
        plan(["a.flac", "b.flac"], ["x.mid"])
    with pytest.raises(OutputError, match="different names"):
        plan(["1/a.flac", "2/a.flac"], ["out"])


def test_nothing_is_written_twice_and_a_recording_has_a_name():
    with pytest.raises(OutputError, match=r"^a.flac would be written to x.mid twice"):
        plan(["a.flac"], ["x.mid", "x.mid"])
    with pytest.raises(OutputError, match=r"^./a.flac would be|^a.flac would be .* twice"):
        plan(["a.flac", "./a.flac"], ["out"])
    with pytest.raises(OutputError, match="is empty"):
        plan([""], ["x.mid"])


def test_an_input_is_never_an_output(tmp_path):
    with pytest.raises(OutputError, match="also an input"):
        plan(["a.mid"], ["a.mid"])
    (tmp_path / "link.mid").symlink_to(tmp_path / "a.mid")
    with pytest.raises(OutputError, match="also an input"):
        plan(["a.mid"], ["link.mid"])


def test_unknown_endings_are_told():
    with pytest.raises(OutputError, match=r"\.mid, \.midi"):
        plan(["a.flac"], ["b.docx"])


def test_what_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        plan(["a.flac"], ["gone/b.mid"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/out"):
        plan(["a.flac"], ["file/out"])
    with pytest.raises(OutputError, match="file"):
        plan(["a.flac"], ["file/b.mid"])
    (tmp_path / "taken.mid").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        plan(["a.flac"], [], ("mid",)) and plan(["taken.flac"], [])
