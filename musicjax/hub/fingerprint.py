"""How a foreign checkpoint is told from every other: by its bytes, be it one file or many."""

import hashlib
import os
from pathlib import Path

from musicjax.errors import WeightsError
from musicjax.hub.cache import sha256_of


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a checkpoint.

    Of a file, that of its bytes. Of a folder, or of all files beside each other whose names begin
    with the path (TensorFlow's `model.ckpt`), that of the lines `sha256  name` which `sha256sum`
    prints for them, sorted by name. Raises WeightsError when there is nothing.
    """
    path = Path(path)
    if path.is_file():
        return sha256_of(path)
    base = path if path.is_dir() else path.parent
    found = base.rglob("*") if path.is_dir() else base.glob(f"{path.name}.*")
    files = {file.relative_to(base).as_posix(): file for file in found if file.is_file()}
    if not files:
        raise WeightsError(f"there is no checkpoint {path}; check the path.")
    lines = "".join(f"{sha256_of(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
