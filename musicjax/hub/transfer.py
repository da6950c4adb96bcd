"""Bytes from an address into a file that grows, going on after every break."""

import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicjax.errors import WeightsError
from musicjax.hub import cache

Progress = Callable[[int, int], None]  # bytes there, bytes in all (0 when not known)
Opening = Callable[[str, Mapping[str, str]], Any]  # address, headers -> an open reply

ATTEMPTS = 4
WAIT_S = 0.5  # doubled after each broken attempt
TIMEOUT_S = 30.0
_CHUNK = 1 << 20


class Unreachable(Exception):
    """An address that does not give its bytes; the text is a phrase that says why."""


class NoRanges(Unreachable):
    """The server gives files only as a whole."""


def open_address(address: str, headers: Mapping[str, str]) -> Any:
    """An open reply, with the proxies and certificates of the environment."""
    request = urllib.request.Request(address, headers=dict(headers))
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Remote:
    """Bytes at an address: `size` of them (0: as many as there are) from `first` on."""

    address: str
    size: int = 0
    first: int = 0


def bring(
    remote: Remote,
    part: Path,
    progress: Progress | None = None,
    *,
    opening: Opening = open_address,
) -> None:
    """Let `part` grow to all the bytes, going on after breaks as long as attempts bring bytes.

    What `part` holds already is taken to be the beginning. Raises Unreachable when the address
    does not give its bytes, NoRanges when it should give a piece and gives the whole, and
    WeightsError when there is no room for them or when more come than there should be.
    """
    wait, failures = WAIT_S, 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        if remote.size and before >= remote.size:
            return
        try:
            _append(remote, part, before, progress, opening)
            after = part.stat().st_size
            if not remote.size or after >= remote.size:
                return
            broken: Exception = ConnectionError(f"broke off after {after:,} bytes")
        except urllib.error.HTTPError as error:
            broken = ConnectionError(f"the server answered {error.code} {error.reason}")
            if error.code == 416 and before:  # the server has no such range: begin again
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise Unreachable(str(broken)) from error
        except (OSError, http.client.HTTPException) as error:
            broken = error
        grown = part.is_file() and part.stat().st_size > before
        failures = 0 if grown else failures + 1
        if failures >= ATTEMPTS or not _worth_retrying(broken):
            raise Unreachable(str(getattr(broken, "reason", broken))) from broken
        time.sleep(wait)
        wait = WAIT_S if grown else 2 * wait


def _worth_retrying(error: Exception) -> bool:
    """Not when there is no network at all: then the sentence should come at once."""
    return not isinstance(getattr(error, "reason", None), socket.gaierror | ConnectionRefusedError)


def _append(
    remote: Remote, part: Path, start: int, progress: Progress | None, opening: Opening
) -> None:
    headers = {"User-Agent": "musicjax"}
    piece = remote.first > 0
    if start or piece:
        last = remote.first + remote.size - 1 if piece else ""
        headers["Range"] = f"bytes={remote.first + start}-{last}"
    with opening(remote.address, headers) as reply:
        partial = reply.status == 206
        if piece and not partial:
            raise NoRanges("the server gives files only as a whole")
        resumed = start > 0 and partial
        there = start if resumed else 0
        total = remote.size or there + int(reply.headers.get("Content-Length") or 0)
        try:
            file = part.open("ab" if resumed else "wb")
        except OSError as error:
            raise cache.no_room(part, error) from error
        with file:
            while chunk := reply.read(_CHUNK):
                there += len(chunk)
                if remote.size and there > remote.size:
                    raise WeightsError(
                        f"{remote.address} sends more than the {remote.size:,} bytes that the "
                        "card names; it is not the file that the card names."
                    )
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise cache.no_room(part, error) from error
                if progress is not None:
                    progress(there, total)


def read_piece(remote: Remote, *, opening: Opening = open_address) -> bytes:
    """The bytes of a small piece, held in memory. Raises as `bring`."""
    last = remote.first + remote.size - 1
    headers = {"User-Agent": "musicjax", "Range": f"bytes={remote.first}-{last}"}
    wait = WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with opening(remote.address, headers) as reply:
                if reply.status != 206:
                    raise NoRanges("the server gives files only as a whole")
                data = reply.read()
            if len(data) == remote.size:
                return data
            broken: Exception = ConnectionError(f"broke off after {len(data):,} bytes")
        except urllib.error.HTTPError as error:
            broken = ConnectionError(f"the server answered {error.code} {error.reason}")
            if error.code < 500:
                raise Unreachable(str(broken)) from error
        except (OSError, http.client.HTTPException) as error:
            broken = error
        if attempt == ATTEMPTS or not _worth_retrying(broken):
            break
        time.sleep(wait)
        wait *= 2
    raise Unreachable(str(getattr(broken, "reason", broken))) from broken
