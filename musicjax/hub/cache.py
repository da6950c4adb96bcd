"""The folders on this computer where downloads and compiled programs are kept, and their checks."""

import contextlib
import errno
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from musicjax.errors import WeightsError
from musicjax.registry import Source


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
    try:
        import fcntl
    except ImportError:  # Windows: the checksum still catches two writers
        yield
        return
    try:
        path.touch()
    except OSError as error:
        raise no_room(path, error) from error
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
