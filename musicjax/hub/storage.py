"""Writing so that a file is either the old one or the whole new one, never half of each."""

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from musicjax.errors import OutputError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def is_full(error: OSError) -> bool:
    """Whether an error means that the disk or the user's quota is full."""
    return error.errno in _FULL


def reason(error: OSError) -> str:
    """The system's words for an error, without its number and path."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The temporary name keeps the suffix, so that writers which choose a format by it still do. When
    the block fails, for whatever cause including Ctrl-C, the temporary file is removed and what was
    at `path` before is untouched. Raises OutputError when the folder cannot be written or is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        if target.is_dir():
            raise OutputError(
                f"cannot write {path}: it is a folder; give the name of a file in it."
            )
        yield target  # a device or a pipe: there is nothing to replace
        return
    name = f".{target.stem[:80]}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}"
    temporary = target.with_name(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # otherwise a power cut can leave an empty file of that name
        os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        if is_full(error):
            raise OutputError(
                f"cannot write {path}: the disk is full; free some space or write elsewhere."
            ) from error
        if error.filename is not None and Path(error.filename) != temporary:
            raise  # something else than this file failed inside the block
        raise OutputError(
            f"cannot write {path} ({reason(error)}); give a file in a folder that you can write."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError unless a file can be made at `path`: to be asked before the long work."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file in it.")
    if target.exists() and not target.is_file():
        return  # a device or a pipe
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {path}: there is no folder {target.parent}; make it first or write "
            "elsewhere."
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({reason(error)}); give a file in a folder that you can write."
        ) from error
