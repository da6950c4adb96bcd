"""The folders on this computer where downloads and compiled programs are kept, and their checks."""

import contextlib
import errno
import hashlib
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musicjax.errors import WeightsError
from musicjax.registry import Source

_LOCK_POLL_S = 0.1


def cache_folder() -> Path:
    """The cache: environment variable MUSICJAX_CACHE, else the platform's cache of this user."""
    chosen = os.environ.get("MUSICJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "musicjax"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "musicjax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicjax"


def compile_cache_folder() -> Path:
    """Where compiled programs are kept, one folder for each kind of processor.

    A home folder can be shared by computers whose processors differ; a program compiled for one
    must not be run on another.
    """
    kind = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return cache_folder() / f"xla-{hashlib.sha256(repr(kind).encode()).hexdigest()[:12]}"


def cached_path(source: Source) -> Path:
    """Where a source's file or folder is, or would be, in the cache: under its own checksum.

    A folder that its card does not pin stands under the checksum of its address.
    """
    key = source.sha256 or hashlib.sha256(source.address.encode()).hexdigest()
    return cache_folder() / "weights" / key[:16] / file_name(source)


def converted_path(source: Source) -> Path:
    """Where a foreign source's weights are, or would be, in our own format."""
    return cached_path(source).with_suffix(".musicjax.safetensors")


def file_name(source: Source) -> str:
    """The last part of a source's address."""
    return source.address.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]


def mirror_path(source: Source) -> Path | None:
    """The source's file or folder in the folder of MUSICJAX_MIRROR; None when it is not there."""
    mirror = os.environ.get("MUSICJAX_MIRROR")
    if not mirror:
        return None
    path = Path(mirror).expanduser() / file_name(source)
    there = path.is_dir() if source.address.endswith("/") else path.is_file()
    return path if there else None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(path: Path, source: Source) -> str | None:
    """What is wrong with a file that should be the source's: a phrase, or None when it is right."""
    size = path.stat().st_size
    if source.size_bytes and size != source.size_bytes:
        return f"has {size:,} bytes instead of {source.size_bytes:,}"
    found = sha256_of(path)
    if found != source.sha256:
        return f"has sha256 {found[:16]}… instead of {source.sha256[:16]}…"
    return None


def make_folder(folder: Path) -> Path:
    """Make a folder of the cache. Raises WeightsError naming MUSICJAX_CACHE when it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_room(folder, error) from error
    return folder


def no_room(path: Path, error: OSError) -> WeightsError:
    """The sentence for a cache that cannot be written."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    why = "the disk is full" if full else (error.strerror or str(error)).lower()
    return WeightsError(
        f"cannot write {path} in the cache ({why}); free some space, or set the environment "
        "variable MUSICJAX_CACHE to a folder that you can write."
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that the processes of one job do not download one file at once."""
    take, release = _locking()
    try:
        file = path.open("ab")
    except OSError as error:
        raise no_room(path, error) from error
    with file:
        take(file.fileno())
        try:
            yield
        finally:
            release(file.fileno())


def _locking() -> tuple[Callable[[int], None], Callable[[int], None]]:
    """How this system takes and releases the lock of an open file, waiting as long as it must."""
    try:
        import fcntl
    except ImportError:
        return _locking_of_windows()
    return (
        lambda handle: fcntl.flock(handle, fcntl.LOCK_EX),
        lambda handle: fcntl.flock(handle, fcntl.LOCK_UN),
    )


def _locking_of_windows() -> tuple[Callable[[int], None], Callable[[int], None]]:
    msvcrt: Any = importlib.import_module("msvcrt")  # its names are known on Windows only

    def first_byte(handle: int, how: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)  # what is locked begins where the file stands
        msvcrt.locking(handle, how, 1)

    def take(handle: int) -> None:
        while True:
            try:
                return first_byte(handle, msvcrt.LK_NBLCK)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
                time.sleep(_LOCK_POLL_S)

    return take, lambda handle: first_byte(handle, msvcrt.LK_UNLCK)
