"""Protocol buffers on the wire: what readers of public checkpoints need, and no more.

A message is a row of fields: a number and a kind in one varint, then the value. What a number
means stands in the format's .proto file, which the readers quote.
"""

from collections.abc import Iterator

from musicjax.errors import WeightsError

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number that begins at `at`, seven bits a byte, and where it ends.

    Raises WeightsError when the bytes end in it, or when it has more than 64 bits.
    """
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WeightsError("a number in it does not end; the file is damaged: fetch it again.")


def signed(value: int) -> int:
    """A varint of an int32 or int64 field as the signed number that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields of a message in their order: (number, value).

    A value is an int where it is stored as a varint, and otherwise bytes: of a string, a message
    or packed numbers, or the four or eight little-endian bytes of a fixed-width number.
    Raises WeightsError when the message is cut off or has fields of an unknown kind.
    """
    data, at = memoryview(data), 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            length, at = varint(data, at)
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            length = 4 if kind == _FOUR_BYTES else 8
        else:
            raise WeightsError(
                f"field {number} in it is of kind {kind}, which protocol buffers do not have; "
                "the file is damaged: fetch it again."
            )
        if length > len(data) - at:
            raise WeightsError(
                f"field {number} in it should have {length} bytes and {len(data) - at} are left; "
                "the file is damaged: fetch it again."
            )
        yield number, data[at : at + length]
        at += length
