"""Writing files so that a reader never meets half of one."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from musicjax.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for binary writing; put it in place on success.

    The block writes to the yielded file. When it ends without an exception the file is flushed to
    disk and renamed over `path`, so that `path` holds either its old content or all of the new.
    When anything fails, the temporary file is removed and `path` is left as it was.

    Errors: OutputError when the folder is missing, not writable, full, or `path` is a folder.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        with target.open("wb") as file:  # a device or a pipe: nothing stands there to be replaced
            yield file
        return
    if target.is_dir():
        raise OutputError(f"Cannot write '{target}': it is a folder. Give the name of a file.")
    if not target.parent.is_dir():
        raise OutputError(
            f"Cannot write '{target}': there is no folder '{target.parent}'. Create it first."
        )
    temporary = target.parent / f".{target.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Cannot write '{target}': {error.strerror or error}. "
            "Choose a folder that you may write to and that has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, and those above it, unless it is there; OutputError where that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder} ({(error.strerror or str(error)).lower()}); give "
            "one in a place where you can write."
        ) from error
    return folder


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError unless a file can be made at `path`: to be asked before the long work."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        return
    if target.is_dir():
        raise OutputError(f"Cannot write '{target}': it is a folder. Give the name of a file.")
    if not target.parent.is_dir():
        raise OutputError(
            f"Cannot write '{target}': there is no folder '{target.parent}'. Create it first."
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write '{target}': {error.strerror or error}. "
            "Choose a folder that you may write to and that has room."
        ) from error
