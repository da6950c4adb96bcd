"""Unpacking archives from strangers: no member may leave the folder it is unpacked into."""

import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from musicjax.errors import DataError

MAX_BYTES = 64 << 30  # what an archive may unpack to unless the caller allows more


def extract(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Unpack a .zip or .tar(.gz, .bz2, .xz) archive into `folder`; the files written, sorted.

    Every member is looked at before the first is written. Raises DataError, with nothing written,
    when one has an absolute path, climbs out through `..`, is a link, a device or a pipe, or when
    all together unpack to more than `max_bytes`.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"there is no archive {archive}.")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _extract_zip(opened, archive, folder, max_bytes)
        with tarfile.open(archive) as opened_tar:
            return _extract_tar(opened_tar, archive, folder, max_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{archive} is not a whole zip or tar archive ({error}); fetch it again."
        ) from error


def _extract_zip(
    opened: zipfile.ZipFile, archive: Path, folder: Path, max_bytes: int
) -> list[Path]:
    members = [m for m in opened.infolist() if not m.is_dir()]
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        _check(archive, member.filename, plain=kind in (0, stat.S_IFREG))
    _check_size(archive, sum(m.file_size for m in members), max_bytes)
    return sorted(Path(opened.extract(member, folder)) for member in members)


def _extract_tar(
    opened: tarfile.TarFile, archive: Path, folder: Path, max_bytes: int
) -> list[Path]:
    members = [m for m in opened.getmembers() if not m.isdir()]
    for member in members:
        _check(archive, member.name, plain=member.isfile())
    _check_size(archive, sum(m.size for m in members), max_bytes)
    opened.extractall(folder, members=members, filter="data")
    return sorted(folder / member.name for member in members)


def _check(archive: Path, name: str, *, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive} holds {name!r}, which would be written outside its folder.")
    if not plain:
        raise DataError(f"{archive} holds {name!r}, which is a link or a device, not a file.")


def _check_size(archive: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DataError(
            f"{archive} would unpack to {size:,} bytes, more than the {max_bytes:,} allowed."
        )
