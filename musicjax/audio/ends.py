"""Whether a file ends where its header says: libsndfile takes what is there for the whole.

Only headers and the last page are read. What tells no length, or one that a program wrote which
could not know it, counts as whole.
"""

import struct
from typing import BinaryIO

_UNKNOWN_FROM = 0x7FFF_0000  # sizes that programs write which do not know how much will come
_LARGEST_PAGE = 27 + 255 + 255 * 255  # of Ogg (RFC 3533, section 6)
_END_OF_STREAM = 0x04
_FREE = 0.01  # share of what is promised that may be missing: writers count headers and tags
_FREE_BYTES = 1024


def what_is_missing(file: BinaryIO) -> str | None:
    """What tells that a WAV, AIFF, OGG or MP3 file was cut, as the rest of a sentence; else None.

    The file must be able to seek; it is left somewhere else.
    """
    size = file.seek(0, 2)
    head = _at(file, 0, 12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _short(*_chunk(file, size, "<", b"data"))
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _short(*_chunk(file, size, ">", b"SSND"))
    if head[:4] == b"OggS":
        return None if _has_last_page(file, size) else "the end of its stream is missing"
    return _short(*_mp3_stream(file, size))


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _short(promised: int, there: int) -> str | None:
    if promised - there <= max(_FREE * promised, _FREE_BYTES):
        return None
    return f"only {100 * there / promised:.0f} % of what its header promises is there"


def _chunk(file: BinaryIO, size: int, order: str, name: bytes) -> tuple[int, int]:
    """Bytes that the chunk of samples should hold, and those that are there; 0, 0: unknown."""
    place, large = 12, 0
    while len(head := _at(file, place, 8)) == 8:
        kind, length = head[:4], struct.unpack(f"{order}I", head[4:])[0]
        place += 8
        if kind == b"ds64":  # RF64: the true sizes of the whole and of "data", 64 bits each
            large = int.from_bytes(_at(file, place + 8, 8), "little")
        if kind == name:
            length = large or length
            unknown = not large and length >= _UNKNOWN_FROM
            return (0, 0) if unknown else (length, size - place)
        place += length + length % 2
    return 0, 0


def _has_last_page(file: BinaryIO, size: int) -> bool:
    tail = _at(file, max(size - 2 * _LARGEST_PAGE, 0), 2 * _LARGEST_PAGE)
    place = tail.rfind(b"OggS\0")
    page = tail[place : place + 27 + 255]
    if place < 0 or len(page) < 27 or not page[5] & _END_OF_STREAM:
        return False
    return place + 27 + page[26] + sum(page[27 : 27 + page[26]]) <= len(tail)


def _mp3_stream(file: BinaryIO, size: int) -> tuple[int, int]:
    """The same of an MP3 file, by what Xing or LAME wrote into its first frame."""
    start, head = 0, _at(file, 0, 10)
    if head[:3] == b"ID3" and len(head) == 10:  # seven bits of each byte
        start = 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(head[6:])))
    frame = _at(file, start, 64)
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return 0, 0
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or len(frame) < place + 16:
        return 0, 0
    flags, *fields = struct.unpack(">3I", frame[place + 4 : place + 16])
    if not flags & 2:
        return 0, 0
    return (fields[1] if flags & 1 else fields[0]), size - start
