"""Archives unpack into their folder or not at all."""

import io
import stat
import tarfile
import zipfile

import pytest

from musicjax.errors import DataError
from musicjax.hub.archive import extract


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data) if info.isfile() else 0
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_good_archives_unpack(tmp_path, make, name):
    archive = make(tmp_path / name, [("x.txt", b"1"), ("deep/y.txt", b"22")])
    files = extract(archive, tmp_path / "out")
    assert [f.read_bytes() for f in files] == [b"22", b"1"]


@pytest.mark.parametrize("bad", ["../evil", "a/../../evil", "/evil", "C:\\evil", "..\\evil"])
@pytest.mark.parametrize(("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_members_cannot_leave_the_folder(tmp_path, make, name, bad):
    archive = make(tmp_path / name, [("good", b"1"), (bad, b"2")])
    with pytest.raises(DataError, match="outside its folder"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "a.tar.gz", [(info, b"")])
    with pytest.raises(DataError, match="link or a device"):
        extract(archive, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match="link or a device"):
        extract(make_zip(tmp_path / "a.zip", [(info, b"/etc")]), tmp_path / "out")


def test_a_bomb_and_a_broken_archive_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("x", b"0" * 1000)])
    with pytest.raises(DataError, match="1,000 bytes"):
        extract(archive, tmp_path / "out", max_bytes=999)
    (tmp_path / "b.tar").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="fetch it again"):
        extract(tmp_path / "b.tar", tmp_path / "out")
    with pytest.raises(DataError, match="no archive"):
        extract(tmp_path / "gone.zip", tmp_path / "out")
