"""CRC-32C (Castagnoli), the checksum inside TensorFlow's checkpoints, with numpy alone.

The register is linear over bits: what a byte does to it does not depend on the bytes before. So
the data is cut into lanes that are summed side by side, and neighbours are joined by letting the
left one's register pass over as many zero bytes as the right one has.
"""

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, bits reversed
_ONES = np.uint32(0xFFFFFFFF)


@cache
def _table() -> np.ndarray:
    """What the low byte of the register turns into, for its 256 values."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


def _apply(operator: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """A linear map, given by what it makes of each of the 32 bits, on many registers at once."""
    out = np.zeros_like(registers)
    for bit, image in enumerate(operator):
        out ^= np.where((registers >> np.uint32(bit)) & 1, image, np.uint32(0))
    return out


@cache
def _past_zeros(count: int) -> np.ndarray:
    """What `count` zero bytes make of each bit of the register."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if count == 0:
        return bits
    if count == 1:
        return _table()[bits & 0xFF] ^ (bits >> 8)
    half = _past_zeros(count // 2)
    twice = _apply(half, half)
    return _apply(_past_zeros(1), twice) if count % 2 else twice


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes: 0xE3069283 for b"123456789"."""
    octets = np.frombuffer(data, np.uint8)
    levels = max(len(octets).bit_length() // 2 - 1, 0)
    lanes = 1 << levels
    width = -(-len(octets) // lanes)
    # Zeros before the data leave an empty register empty; the register's start is added below.
    padded = np.zeros(lanes * width, np.uint8)
    padded[len(padded) - len(octets) :] = octets
    columns = np.ascontiguousarray(padded.reshape(lanes, width).T)
    registers, table = np.zeros(lanes, np.uint32), _table()
    for column in columns:
        registers = table[(registers ^ column) & 0xFF] ^ (registers >> 8)
    for level in range(levels):
        registers = _apply(_past_zeros(width << level), registers[::2]) ^ registers[1::2]
    start = _apply(_past_zeros(len(octets)), np.array([_ONES]))
    return int(registers[0] ^ start[0] ^ _ONES)


def masked(checksum: int) -> int:
    """A checksum as LevelDB and TensorFlow store it, so that sums of sums are no special case."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
