"""A folder of a public Google Cloud Storage bucket: over https, without an account or an SDK.

The bucket's own listing gives the size and a checksum of every object; each file is held to both.
A card may pin the whole besides: its `sha256` is then that of `musicjax.hub.fingerprint`.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from urllib.parse import quote, urlencode

from musicjax.errors import WeightsError
from musicjax.files import atomic_write
from musicjax.hub import cache, transfer
from musicjax.hub.crc32c import crc32c
from musicjax.hub.fingerprint import fingerprint
from musicjax.hub.transfer import Progress
from musicjax.registry import Source

HOST = "https://storage.googleapis.com"
CONNECTIONS = 8  # a T5X checkpoint is hundreds of small files
_FIELDS = "items(name,size,md5Hash,crc32c),nextPageToken"


@dataclass(frozen=True)
class Listed:
    """One file of a folder: its path in it, its size, and its checksum in base64.

    A bucket keeps no MD5 of an object that was put together from pieces; then crc32c counts.
    """

    path: str
    size: int
    md5: str = ""
    crc32c: str = ""

    def fault(self, file: Path) -> str | None:
        """What is wrong with the file that should be this one: a phrase, or None."""
        if not file.is_file():
            return f"{self.path} is missing"
        found = file.stat().st_size
        if found != self.size:
            return f"{self.path} has {found:,} bytes instead of {self.size:,}"
        wanted = self.md5 or self.crc32c
        if wanted and _checksum(file.read_bytes(), bool(self.md5)) != wanted:
            return f"{self.path} has another checksum than the bucket's"
        return None


def is_folder(address: str) -> bool:
    """Whether an address is that of a folder in a bucket: gs://bucket/path/ with its last slash."""
    return address.startswith("gs://") and address.endswith("/")


def fetch_folder(source: Source, *, progress: Progress | None = None) -> Path:
    """The folder of a `gs://bucket/path/` source on this computer, every file of it checked.

    Looked for in the cache, then in the mirror folder (as a folder of the same name), then in the
    bucket; a download that broke off goes on where it stopped. Raises WeightsError when it cannot
    be had, when a file fails its checksum, or when the whole is not what the card pins.
    """
    cached = cache.cached_path(source)
    listing = cached.with_name(f"{cached.name}.listing.json")
    if listing.is_file() and not _faults(cached, listing):
        return cached
    mirrored = cache.mirror_path(source)
    if mirrored is not None:
        _check_pin(source, mirrored)
        return mirrored
    cache.make_folder(cached.parent)
    with cache.locked(cached.with_name(f"{cached.name}.lock")):
        if listing.is_file() and not _faults(cached, listing):  # another process fetched it
            return cached
        listing.unlink(missing_ok=True)
        try:
            listed = list_folder(source.address, cached.with_name(f"{cached.name}.list.part"))
            _bring_all(source, listed, cached, progress)
        except transfer.Unreachable as error:
            raise WeightsError(
                f"cannot fetch {source.address} ({error}). Without a network, put that folder, "
                f"named {cached.name}, in a folder and set the environment variable "
                "MUSICJAX_MIRROR to the outer one."
            ) from error
        _check_pin(source, cached)
        with atomic_write(listing) as file:
            file.write(json.dumps([asdict(one) for one in listed]).encode())
    return cached


def list_folder(address: str, part: Path) -> list[Listed]:
    """The files of a `gs://bucket/path/` folder and of those within it. `part` is scratch.

    Raises Unreachable when the bucket does not answer, and WeightsError when it answers something
    else, when the folder is empty, or when a name would lead out of it.
    """
    bucket, _, prefix = address.removeprefix("gs://").partition("/")
    listed: list[Listed] = []
    page = ""
    while True:
        query = {"prefix": prefix, "fields": _FIELDS} | ({"pageToken": page} if page else {})
        part.unlink(missing_ok=True)
        where = f"{HOST}/storage/v1/b/{quote(bucket, safe='')}/o?{urlencode(query)}"
        transfer.bring(transfer.Remote(where), part)
        try:
            answer = json.loads(part.read_bytes())
            listed += _files(answer.get("items", []), prefix)
            page = answer.get("nextPageToken", "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{address} cannot be listed: the server's answer is no listing ({error!r})."
            ) from error
        finally:
            part.unlink(missing_ok=True)
        if not page:
            break
    if not listed:
        raise WeightsError(f"the bucket has no files at {address}; check the address.")
    outside = [one.path for one in listed if _leads_out(one.path)]
    if outside:
        raise WeightsError(f"{address} holds {outside[0]!r}, which would lead out of its folder.")
    return listed


def _files(items: Sequence[dict[str, Any]], prefix: str) -> list[Listed]:
    return [
        Listed(
            path=item["name"].removeprefix(prefix),
            size=int(item["size"]),
            md5=item.get("md5Hash", ""),
            crc32c=item.get("crc32c", ""),
        )
        for item in items
        if not item["name"].endswith("/")  # what a console makes to show an empty folder
    ]


def _leads_out(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]


def _bring_all(
    source: Source, listed: Sequence[Listed], folder: Path, progress: Progress | None
) -> None:
    total = sum(one.size for one in listed)
    if source.size_bytes and total != source.size_bytes:
        raise WeightsError(
            f"{source.address} has {total:,} bytes in all and the card names "
            f"{source.size_bytes:,}: it has changed, and a newer musicjax may know it."
        )
    there: dict[str, int] = {}
    turn = Lock()

    def tell(one: Listed, so_far: int) -> None:
        if progress is not None:
            with turn:
                there[one.path] = so_far
                progress(sum(there.values()), total)

    def bring(one: Listed) -> str | None:
        target = folder / one.path
        if one.fault(target) is not None:
            cache.make_folder(target.parent)
            part = target.with_name(f"{target.name}.part")
            address = f"{HOST}/{quote(source.address.removeprefix('gs://') + one.path)}"
            if one.size:
                remote = transfer.Remote(address, one.size)
                transfer.bring(remote, part, lambda so_far, _: tell(one, so_far))
            else:
                part.write_bytes(b"")
            problem = one.fault(part)
            if problem is not None:
                part.unlink(missing_ok=True)
                return problem
            part.replace(target)
        tell(one, one.size)
        return None

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        faults = [problem for problem in pool.map(bring, listed) if problem]
    if faults:
        raise WeightsError(
            f"{len(faults)} of the {len(listed)} files of {source.address} came damaged and were "
            f"thrown away: {'; '.join(faults)}. Try again."
        )


def _faults(folder: Path, listing: Path) -> list[str]:
    listed = [Listed(**one) for one in json.loads(listing.read_bytes())]
    return [problem for one in listed if (problem := one.fault(folder / one.path))]


def _check_pin(source: Source, folder: Path) -> None:
    found = fingerprint(folder) if source.sha256 else ""
    if found != source.sha256:
        raise WeightsError(
            f"the folder {folder} has sha256 {found[:16]}… instead of {source.sha256[:16]}…: it is "
            f"not the one that the card names at {source.address}."
        )


def _checksum(data: bytes, md5: bool) -> str:
    """As the bucket writes it: base64 of the MD5, or of the big-endian CRC-32C."""
    if md5:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
    else:
        digest = struct.pack(">I", crc32c(data))
    return base64.b64encode(digest).decode()
