"""CRC-32C (Castagnoli), the checksum of TensorFlow checkpoints, in NumPy.

A CRC register is linear over GF(2): after the bytes A and then B it is ``shift(A) ^ B``, where ``shift`` appends
zero bytes and is one table look-up for each half of the register. So the words are laid out as rows, the rows
are folded into one, a whole row of look-ups at a time, and then the halves of that row into one word.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # bits reversed
_ROW = 8192  # words; the running row, the next row and the tables (512 KiB) stay in the L2 cache

Words = npt.NDArray[np.uint32]
Bytes = bytes | memoryview | npt.NDArray[np.uint8]


def crc32c(data: Bytes) -> int:
    """Return the CRC-32C of some bytes; about 2 ns a byte for long ones."""
    buffer = np.frombuffer(data, np.uint8)
    whole = len(buffer) // 4 * 4
    state = 0xFFFFFFFF
    if whole:
        state = _fold(state, buffer[:whole].view("<u4"))
    for byte in buffer[whole:].tolist():
        state = (state >> 8) ^ int(_byte_table()[(state ^ byte) & 0xFF])
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: Bytes) -> int:
    """Return the CRC as LevelDB and TensorFlow store it: rotated right by 15, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _fold(state: int, words: Words) -> int:
    """Return the register that starts as ``state``, after at least one word."""
    width = min(_ROW, 1 << (len(words) - 1).bit_length())
    first = (len(words) - 1) % width + 1
    row = np.zeros(width, np.uint32)  # leading zeros leave a zero register alone
    row[-first:] = words[:first]
    row[-first] ^= np.uint32(state)
    for following in words[first:].reshape(-1, width):
        row = _shift(row, 4 * width) ^ following
    while len(row) > 1:
        half = len(row) // 2
        row = _shift(row[:half], 4 * half) ^ row[half:]
    return int(_shift(row, 4)[0])


def _shift(registers: Words, count: int) -> Words:
    """Append ``count`` (a power of two) zero bytes to each register."""
    low, high = _shift_tables(count)
    return low[registers & 0xFFFF] ^ high[registers >> 16]


@cache
def _shift_tables(count: int) -> Words:
    """Registers after ``count`` zero bytes, by the low and by the high half of the register: (2, 65536)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    once = (bits >> 8) ^ _byte_table()[bits & 0xFF]
    images = once if count == 1 else _shift(_shift(bits, count // 2), count // 2)
    tables = np.zeros((2, 65536), np.uint32)
    for bit in range(16):
        size = 1 << bit
        tables[:, size : 2 * size] = tables[:, :size] ^ images.reshape(2, 16)[:, bit, None]
    return tables


@cache
def _byte_table() -> Words:
    """Registers after one zero byte, by their low byte: (256,)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table
